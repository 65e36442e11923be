"""What report.json holds, as frozen dataclasses of pydantic: sections and the report they make."""
