"""Which call answers which request."""

from tests.hub import collections, login, pulls, reading, running, writing

ID = r"(?P<id>[^/]+/[^/]+)"
API = r"/api/(?P<kind>models|datasets|spaces)/" + ID
REV = r"/(?P<rev>[^/]+)"
ROUTES = (
    ("GET", "/api/whoami-v2", reading.whoami),
    ("POST", "/api/repos/create", writing.create_repo),
    ("DELETE", "/api/repos/delete", writing.delete_repo),
    ("POST", "/api/validate-yaml", writing.validate_yaml),
    ("GET", "/api/models", reading.models),
    ("GET", API, reading.info),
    ("GET", f"{API}/revision{REV}", reading.info),
    ("GET", f"{API}/tree{REV}(?P<path>/.*)?", reading.tree),
    ("POST", f"{API}/paths-info{REV}", reading.paths_info),
    ("GET", f"{API}/refs", reading.refs),
    ("POST", f"{API}/tag{REV}", writing.create_tag),
    ("DELETE", f"{API}/tag{REV}", writing.delete_tag),
    ("POST", f"{API}/branch{REV}", writing.create_branch),
    ("DELETE", f"{API}/branch{REV}", writing.delete_branch),
    ("GET", f"{API}/commits{REV}", reading.commits),
    ("POST", f"{API}/preupload{REV}", writing.preupload),
    ("POST", f"{API}/commit{REV}", writing.commit),
    ("GET", f"{API}/xet-write-token{REV}", writing.xet_token),
    ("GET", f"{API}/discussions", pulls.discussions),
    ("POST", f"{API}/discussions", pulls.open_discussion),
    ("GET", f"{API}/discussions/(?P<num>[0-9]+)", pulls.discussion),
    ("POST", f"{API}/discussions/(?P<num>[0-9]+)/merge", pulls.merge),
    ("PUT", f"{API}/settings", writing.settings),
    ("GET", "/api/collections", collections.found),
    ("POST", "/api/collections", collections.create),
    ("GET", "/api/collections/(?P<slug>[^/]+/[^/]+)", collections.look),
    ("POST", "/api/collections/(?P<slug>[^/]+/[^/]+)/items", collections.add),
    ("POST", f"/api/spaces/{ID}/hardware", running.hardware),
    ("POST", "/api/jobs/(?P<namespace>[^/]+)", running.job),
    ("GET", "/.well-known/openid-configuration", login.configuration),
    ("GET", "/oauth/authorize", login.authorize),
    ("POST", "/oauth/token", login.token),
    ("GET", "/oauth/userinfo", login.userinfo),
    ("POST", rf"/(?:(?:datasets|spaces)/)?{ID}\.git/info/lfs/objects/batch", writing.lfs_batch),
    ("POST", "/lfs/verify", writing.lfs_verify),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", writing.lfs_put),
    ("GET|HEAD", rf"/(?P<kind>datasets/|spaces/)?{ID}/resolve{REV}/(?P<path>.+)", reading.resolve),
    ("GET|HEAD", "/cdn/(?P<key>[0-9a-f]+)", reading.cdn),
)
