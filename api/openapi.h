/* api/openapi.h
 *
 * api/openapi.yaml as JSON text, made at build time by api/openapi_c.py.
 */
#ifndef PW_API_OPENAPI_H
#define PW_API_OPENAPI_H

const char *openapi_json(void);

#endif
