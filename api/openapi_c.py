"""Writes api/openapi.yaml (stdin) as a C source (stdout) that holds it as JSON text."""
import json
import sys

import yaml

text = json.dumps(yaml.safe_load(sys.stdin), separators=(",", ":")).encode()
print('#include "api/openapi.h"\n\nstatic const char json[] = {')
for at in range(0, len(text), 32):
    print("\t" + ",".join(str(byte) for byte in text[at:at + 32]) + ",")
print("\t0,\n};\n\nconst char *openapi_json(void)\n{\n\treturn json;\n}")
