"""What strangers may send: folders, reports and blueprints that try to reach what is not theirs."""
