/* SPDX-License-Identifier: MIT */
/* See json.h. */
#include "engine/json.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/size.h"

const char *text_show(const char *s, size_t n, char *ret, size_t size)
{
    size_t k = MIN(n, size - 1);

    for (size_t i = 0; i < k; i++)
        ret[i] = s[i] >= 0x20 && s[i] <= 0x7e ? s[i] : '?';
    ret[k] = '\0';
    if (n > k && k >= 3)
        memcpy(ret + k - 3, "...", 3);
    return ret;
}

const char *json_show(const json_t *j, char ret[JSON_SHOWN])
{
    char shown[JSON_SHOWN - 2];

    switch (j ? json_typeof(j) : JSON_NULL) {
    case JSON_OBJECT:
        return strcpy(ret, "an object");
    case JSON_ARRAY:
        snprintf(ret, JSON_SHOWN, "an array of %zu", json_array_size(j));
        return ret;
    case JSON_STRING:
        text_show(json_string_value(j), json_string_length(j), shown, sizeof(shown));
        snprintf(ret, JSON_SHOWN, "\"%s\"", shown);
        return ret;
    case JSON_INTEGER:
        snprintf(ret, JSON_SHOWN, "%lld", (long long)json_integer_value(j));
        return ret;
    case JSON_REAL:
        snprintf(ret, JSON_SHOWN, "%.9g", json_real_value(j));
        return ret;
    case JSON_TRUE:
        return strcpy(ret, "true");
    case JSON_FALSE:
        return strcpy(ret, "false");
    default:
        return strcpy(ret, j ? "null" : "nothing");
    }
}

int json_parse_object(const char *text, size_t size, const char *file, json_t **ret, struct fail *f)
{
    json_error_t error;
    char shown[JSON_ERROR_TEXT_LENGTH];

    _cleanup_json_ json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    if (!root && json_error_code(&error) == json_error_out_of_memory)
        return fail_oom(f);
    if (!root)
        return fail_set(f, EINVAL, "CONFIG", "%s: line %d: not valid JSON: %s", file, error.line,
                        text_show(error.text, strlen(error.text), shown, sizeof(shown)));
    if (!json_is_object(root))
        return fail_set(f, EINVAL, "CONFIG", "%s: line 1: expected an object", file);
    *ret = TAKE_PTR(root);
    return 0;
}
