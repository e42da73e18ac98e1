"""Statistics: functions of arrays and numbers, without files and manifests. Nothing here measures."""
