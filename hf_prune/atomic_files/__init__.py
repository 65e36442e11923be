"""Reading and writing on disks that fill, break off in the middle, and hold what strangers have sent."""

# ruff: noqa: F401
from hf_prune.atomic_files.disks import disk_told, shown_path, what_failed
from hf_prune.atomic_files.links import check_file, check_files, copy_file
from hf_prune.atomic_files.staging import check_place, claimed, copied, copying, staged, write_text, written
