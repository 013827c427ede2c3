/* SPDX-License-Identifier: MIT
 * Walks a schema once and adds rules for each part. Called by api_format.c; keeps nothing. A rule for a value is never empty, so
 * that references may go in circles as long as something is read on the way; grammar_finish finds those that do not. */
#include "coordinator/schema.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/grammar.h"
#include "proto/err.h"
#include "proto/util.h"

#define MAX_DEPTH 64u
#define MAX_ITEMS 256u
#define MAX_LENGTH 1024u
#define MAX_DEFINITIONS 256u
#define MAX_DIGITS 15u

struct build {
    struct grammar *g;
    const json_t *root;
    struct err *err;
    uint32_t space, character, string, integer, number, value, object, array; /* rules; 0: not made yet (rule 0 is `space`) */
    struct {
        const json_t *schema;
        uint32_t rule;
    } done[MAX_DEFINITIONS]; /* targets of references */
    uint32_t n_done;
};

static int compile(struct build *b, const json_t *schema, uint32_t rule, const char *place, unsigned depth);

static void add(struct build *b, uint32_t rule, size_t n, ...)
{
    uint32_t symbols[8];
    va_list args;
    va_start(args, n);
    for (size_t i = 0; i < n; i++)
        symbols[i] = va_arg(args, uint32_t);
    va_end(args);
    grammar_add(b->g, rule, symbols, n);
}

/* An alternate: text, then `then` (a symbol), then `last`; 0 = no such. */
static void add_text(struct build *b, uint32_t rule, const char *text, size_t n, uint32_t then, uint32_t last)
{
    auto_free uint32_t *symbols = malloc((n + 2) * sizeof(*symbols));
    if (!symbols) {
        grammar_add(b->g, rule, NULL, GRAMMAR_MAX_SYMBOLS); /* fails, as it should */
        return;
    }
    for (size_t i = 0; i < n; i++)
        symbols[i] = grammar_byte((unsigned char)text[i]);
    if (then)
        symbols[n++] = then;
    if (last)
        symbols[n++] = last;
    grammar_add(b->g, rule, symbols, n);
}

static uint32_t B(char c)
{
    return grammar_byte((unsigned char)c);
}

/* Up to n digits. */
static uint32_t digits(struct build *b, unsigned n)
{
    uint32_t digit = grammar_set(b->g, "09"), next = grammar_rule(b->g);
    add(b, next, 0);
    for (unsigned i = 0; i < n; i++) {
        uint32_t rule = grammar_rule(b->g);
        add(b, rule, 0);
        add(b, rule, 2, digit, grammar_call(next));
        next = rule;
    }
    return next;
}

/* One character of a string: valid UTF-8, escapes without lone surrogates. */
static void add_character(struct build *b)
{
    struct grammar *g = b->g;
    uint32_t c = b->character = grammar_rule(g), tail = grammar_set(g, "\x80\xbf"), hex = grammar_set(g, "09AFaf");
    add(b, c, 1, grammar_set(g, "  !!#[]\x7f"));
    add(b, c, 2, grammar_set(g, "\xc2\xdf"), tail);
    add(b, c, 3, grammar_byte(0xE0), grammar_set(g, "\xa0\xbf"), tail);
    add(b, c, 3, grammar_set(g, "\xe1\xec\xee\xef"), tail, tail);
    add(b, c, 3, grammar_byte(0xED), grammar_set(g, "\x80\x9f"), tail);
    add(b, c, 4, grammar_byte(0xF0), grammar_set(g, "\x90\xbf"), tail, tail);
    add(b, c, 4, grammar_set(g, "\xf1\xf3"), tail, tail, tail);
    add(b, c, 4, grammar_byte(0xF4), grammar_set(g, "\x80\x8f"), tail, tail);
    add(b, c, 2, B('\\'), grammar_set(g, "\"\"\\\\//bbffnnrrtt"));
    add(b, c, 6, B('\\'), B('u'), grammar_set(g, "09ACEFacef"), hex, hex, hex);
    add(b, c, 6, B('\\'), B('u'), grammar_set(g, "DDdd"), grammar_set(g, "07"), hex, hex);
}

static void add_numbers(struct build *b)
{
    struct grammar *g = b->g;
    uint32_t more = digits(b, MAX_DIGITS - 1), some = grammar_rule(g), whole = grammar_rule(g), fraction = grammar_rule(g),
             exponent = grammar_rule(g), sign = grammar_set(g, "++--"), digit = grammar_set(g, "09"), two = digits(b, 1);
    add(b, some, 2, digit, grammar_call(more));
    add(b, whole, 1, B('0'));
    add(b, whole, 2, grammar_set(g, "19"), grammar_call(more));
    add(b, fraction, 0);
    add(b, fraction, 2, B('.'), grammar_call(some));
    add(b, exponent, 0);
    add(b, exponent, 3, grammar_set(g, "EEee"), digit, grammar_call(two));
    add(b, exponent, 4, grammar_set(g, "EEee"), sign, digit, grammar_call(two));
    b->integer = grammar_rule(g);
    add(b, b->integer, 1, grammar_call(whole));
    add(b, b->integer, 2, B('-'), grammar_call(whole));
    b->number = grammar_rule(g);
    add(b, b->number, 3, grammar_call(b->integer), grammar_call(fraction), grammar_call(exponent));
}

/* The rules that every schema may use: any value among them. */
static void add_base(struct build *b)
{
    struct grammar *g = b->g;
    b->space = grammar_rule(g);
    add(b, b->space, 0);
    add(b, b->space, 1, B(' '));
    add_character(b);
    add_numbers(b);
    uint32_t rest = grammar_rule(g), pair = grammar_rule(g), pairs = grammar_rule(g), items = grammar_rule(g);
    uint32_t space = grammar_call(b->space);
    b->string = grammar_rule(g);
    add(b, b->string, 2, B('"'), grammar_call(rest));
    add(b, rest, 1, B('"'));
    add(b, rest, 2, grammar_call(b->character), grammar_call(rest));
    b->value = grammar_rule(g);
    b->object = grammar_rule(g);
    b->array = grammar_rule(g);
    add(b, b->value, 1, grammar_call(b->object));
    add(b, b->value, 1, grammar_call(b->array));
    add(b, b->value, 1, grammar_call(b->string));
    add(b, b->value, 1, grammar_call(b->number));
    add_text(b, b->value, "true", 4, 0, 0);
    add_text(b, b->value, "false", 5, 0, 0);
    add_text(b, b->value, "null", 4, 0, 0);
    add(b, b->object, 2, B('{'), B('}'));
    add(b, b->object, 3, B('{'), grammar_call(pair), grammar_call(pairs));
    add(b, pair, 4, grammar_call(b->string), B(':'), space, grammar_call(b->value));
    add(b, pairs, 1, B('}'));
    add(b, pairs, 4, B(','), space, grammar_call(pair), grammar_call(pairs));
    add(b, b->array, 2, B('['), B(']'));
    add(b, b->array, 3, B('['), grammar_call(b->value), grammar_call(items));
    add(b, items, 1, B(']'));
    add(b, items, 4, B(','), space, grammar_call(b->value), grammar_call(items));
}

static int refuse(struct build *b, const char *place, const char *name, const char *what)
{
    return err_set(b->err, -EINVAL, "schema, at '%s': '%.40s' %s", *place ? place : "#", name, what);
}

static int refuse_reference(struct build *b, const char *place, const char *to)
{
    return err_set(b->err, -EINVAL, "schema, at '%s': '$ref' %s%.60s%s does not name a schema under '#/$defs/' or '#/definitions/'",
                   *place ? place : "#", to ? "to '" : "", to ? to : "", to ? "'" : "");
}

static void place_below(char ret[128], const char *place, const char *name)
{
    snprintf(ret, 128, "%.80s/%.40s", *place ? place : "#", name);
}

static int read_count(struct build *b, const json_t *schema, const char *name, uint32_t otherwise, uint32_t limit, uint32_t *ret,
                      const char *place)
{
    const json_t *v = json_object_get(schema, name);
    *ret = otherwise;
    if (!v)
        return 0;
    json_int_t n = json_integer_value(v);
    if (!json_is_integer(v) || n < 0 || n > limit)
        return refuse(b, place, name, "is not a whole number within the limit (items 256, length 1024)");
    *ret = (uint32_t)n;
    return 0;
}

static int add_string(struct build *b, const json_t *schema, uint32_t rule, const char *place)
{
    uint32_t min = 0, max = 0;
    int r = read_count(b, schema, "minLength", 0, MAX_LENGTH, &min, place);
    if (r == 0)
        r = read_count(b, schema, "maxLength", UINT32_MAX, MAX_LENGTH, &max, place);
    if (r < 0)
        return r;
    if (min > max)
        return refuse(b, place, "minLength", "is above 'maxLength'");
    uint32_t last = max == UINT32_MAX ? min : max, next = grammar_rule(b->g); /* from the end of the string to its beginning */
    add(b, next, 1, B('"'));
    if (max == UINT32_MAX)
        add(b, next, 2, grammar_call(b->character), grammar_call(next));
    for (uint32_t i = last; i-- > 0;) {
        uint32_t one = grammar_rule(b->g);
        if (i >= min)
            add(b, one, 1, B('"'));
        add(b, one, 2, grammar_call(b->character), grammar_call(next));
        next = one;
    }
    add(b, rule, 2, B('"'), grammar_call(next));
    return 0;
}

static int add_array(struct build *b, const json_t *schema, uint32_t rule, const char *place, unsigned depth)
{
    const json_t *items = json_object_get(schema, "items");
    uint32_t min = 0, max = 0, item = items ? grammar_rule(b->g) : b->value;
    char below[128];
    place_below(below, place, "items");
    int r = items ? compile(b, items, item, below, depth + 1) : 0;
    if (r == 0)
        r = read_count(b, schema, "minItems", 0, MAX_ITEMS, &min, place);
    if (r == 0)
        r = read_count(b, schema, "maxItems", UINT32_MAX, MAX_ITEMS, &max, place);
    if (r < 0)
        return r;
    if (min > max)
        return refuse(b, place, "minItems", "is above 'maxItems'");
    uint32_t last = max == UINT32_MAX ? MAX(min, 1u) : max, next = grammar_rule(b->g), space = grammar_call(b->space);
    add(b, next, 1, B(']'));
    if (max == UINT32_MAX)
        add(b, next, 4, B(','), space, grammar_call(item), grammar_call(next));
    for (uint32_t i = last; i-- > 1;) { /* after i items */
        uint32_t one = grammar_rule(b->g);
        if (i >= min)
            add(b, one, 1, B(']'));
        add(b, one, 4, B(','), space, grammar_call(item), grammar_call(next));
        next = one;
    }
    if (min == 0)
        add(b, rule, 2, B('['), B(']'));
    if (max > 0)
        add(b, rule, 3, B('['), grammar_call(item), grammar_call(next));
    return 0;
}

static bool is_required(const json_t *required, const char *name)
{
    size_t i;
    const json_t *v;
    json_array_foreach(required, i, v)
    {
        if (json_is_string(v) && strcmp(json_string_value(v), name) == 0)
            return true;
    }
    return false;
}

static int check_object(struct build *b, const json_t *schema, const json_t *properties, const char *place)
{
    const json_t *required = json_object_get(schema, "required"), *more = json_object_get(schema, "additionalProperties"), *v;
    size_t i;
    if (properties && (!json_is_object(properties) || json_object_size(properties) > MAX_ITEMS))
        return refuse(b, place, "properties", "is not an object of at most 256 schemas");
    if (required && !json_is_array(required))
        return refuse(b, place, "required", "is not a list of names");
    json_array_foreach(required, i, v)
    {
        if (!json_is_string(v) || !json_object_get(properties, json_string_value(v)))
            return refuse(b, place, "required", "names what 'properties' does not have");
    }
    if (more && !json_is_boolean(more))
        return refuse(b, place, "additionalProperties", "is neither true nor false");
    return 0;
}

/* Two rules for each property, from the last to the first: `some`, from it on at least one comes; `rest`, what follows it. */
static int add_object(struct build *b, const json_t *schema, uint32_t rule, const char *place, unsigned depth)
{
    json_t *properties = json_object_get(schema, "properties"), *v;
    const json_t *required = json_object_get(schema, "required");
    const char *names[MAX_ITEMS], *name;
    uint32_t rules[MAX_ITEMS], n = 0;
    int r = check_object(b, schema, properties, place);
    if (r < 0)
        return r;
    if (json_object_size(properties) == 0 && !json_is_false(json_object_get(schema, "additionalProperties"))) {
        add(b, rule, 1, grammar_call(b->object));
        return 0;
    }
    json_object_foreach(properties, name, v)
    {
        char below[128];
        place_below(below, place, name);
        names[n] = name;
        rules[n] = grammar_rule(b->g);
        r = r == 0 ? compile(b, v, rules[n], below, depth + 1) : r;
        n++;
    }
    if (r < 0)
        return r;
    uint32_t some = grammar_rule(b->g), space = grammar_call(b->space); /* of none */
    bool may_end = true, more = false;
    for (; n-- > 0; more = true) {
        uint32_t key = grammar_rule(b->g), one = grammar_rule(b->g), rest = grammar_rule(b->g);
        json_t *string = json_string(names[n]);
        auto_free char *text = string ? json_dumps(string, JSON_ENCODE_ANY) : NULL;
        json_decref(string);
        if (!text)
            return err_set(b->err, -ENOMEM, "schema: out of memory");
        add_text(b, key, text, strlen(text), B(':'), space);
        if (may_end)
            add(b, rest, 1, B('}'));
        if (more)
            add(b, rest, 3, B(','), space, grammar_call(some));
        add(b, one, 3, grammar_call(key), grammar_call(rules[n]), grammar_call(rest));
        if (is_required(required, names[n]))
            may_end = false;
        else
            add(b, one, 1, grammar_call(some));
        some = one;
    }
    if (may_end)
        add(b, rule, 2, B('{'), B('}'));
    add(b, rule, 2, B('{'), grammar_call(some));
    return 0;
}

/* type: one that check_types knows. */
static int add_type(struct build *b, const json_t *schema, const char *type, uint32_t rule, const char *place, unsigned depth)
{
    if (strcmp(type, "object") == 0)
        return add_object(b, schema, rule, place, depth);
    if (strcmp(type, "array") == 0)
        return add_array(b, schema, rule, place, depth);
    if (strcmp(type, "string") == 0)
        return add_string(b, schema, rule, place);
    if (strcmp(type, "number") == 0)
        add(b, rule, 1, grammar_call(b->number));
    else if (strcmp(type, "integer") == 0)
        add(b, rule, 1, grammar_call(b->integer));
    else if (strcmp(type, "null") == 0)
        add_text(b, rule, "null", 4, 0, 0);
    else {
        add_text(b, rule, "true", 4, 0, 0);
        add_text(b, rule, "false", 5, 0, 0);
    }
    return 0;
}

static int add_types(struct build *b, const json_t *schema, const json_t *types, uint32_t rule, const char *place, unsigned depth)
{
    size_t i;
    const json_t *v;
    int r = 0;
    if (json_is_string(types))
        return add_type(b, schema, json_string_value(types), rule, place, depth);
    json_array_foreach(types, i, v)
    {
        r = r == 0 ? add_type(b, schema, json_string_value(v), rule, place, depth) : r;
    }
    return r;
}

/* A whole number is an integer however it is written: 1.0, too. */
static bool is_of_type(const json_t *v, const char *type)
{
    double x = json_number_value(v);
    return strcmp(type, "object") == 0    ? json_is_object(v)
           : strcmp(type, "array") == 0   ? json_is_array(v)
           : strcmp(type, "string") == 0  ? json_is_string(v)
           : strcmp(type, "number") == 0  ? json_is_number(v)
           : strcmp(type, "integer") == 0 ? json_is_integer(v) || (json_is_real(v) && floor(x) == x)
           : strcmp(type, "null") == 0    ? json_is_null(v)
                                          : json_is_boolean(v);
}

/* types: NULL is any. */
static bool is_of_types(const json_t *v, const json_t *types)
{
    size_t i;
    const json_t *type;
    json_array_foreach(types, i, type)
    {
        if (is_of_type(v, json_string_value(type)))
            return true;
    }
    return !types || (json_is_string(types) && is_of_type(v, json_string_value(types)));
}

static int add_constant(struct build *b, const json_t *v, uint32_t rule)
{
    auto_free char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    if (!text)
        return err_set(b->err, -ENOMEM, "schema: out of memory");
    add_text(b, rule, text, strlen(text), 0, 0);
    return 0;
}

/* Those that are of the type that stands beside them; where none is, no text would fit. */
static int add_constants(struct build *b, const json_t *list, const json_t *types, uint32_t rule, const char *place)
{
    size_t i;
    const json_t *v;
    int r = 0;
    bool any = false;
    if (!json_is_array(list) || json_array_size(list) == 0 || json_array_size(list) > MAX_ITEMS)
        return refuse(b, place, "enum", "is not a list of 1 to 256 values");
    json_array_foreach(list, i, v)
    {
        if (!is_of_types(v, types))
            continue;
        any = true;
        r = r == 0 ? add_constant(b, v, rule) : r;
    }
    return any ? r : refuse(b, place, "enum", "has no value of the 'type' beside it");
}

static int add_any_of(struct build *b, const json_t *list, uint32_t rule, const char *place, unsigned depth)
{
    size_t i;
    const json_t *v;
    int r = 0;
    char below[128];
    place_below(below, place, "anyOf");
    if (!json_is_array(list) || json_array_size(list) == 0)
        return refuse(b, place, "anyOf", "is not a list of schemas");
    json_array_foreach(list, i, v)
    {
        uint32_t one = grammar_rule(b->g);
        add(b, rule, 1, grammar_call(one));
        r = r == 0 ? compile(b, v, one, below, depth + 1) : r;
    }
    return r;
}

/* "#", "#/$defs/NAME" or "#/definitions/NAME". Each target has one rule, made when it is met first. */
static int add_reference(struct build *b, const json_t *ref, uint32_t rule, const char *place, unsigned depth)
{
    const char *text = json_string_value(ref);
    const json_t *to = NULL;
    if (text && strcmp(text, "#") == 0)
        to = b->root;
    else if (text && strncmp(text, "#/$defs/", 8) == 0)
        to = json_object_get(json_object_get(b->root, "$defs"), text + 8);
    else if (text && strncmp(text, "#/definitions/", 14) == 0)
        to = json_object_get(json_object_get(b->root, "definitions"), text + 14);
    if (!to)
        return refuse_reference(b, place, text);
    for (uint32_t i = 0; i < b->n_done; i++) {
        if (b->done[i].schema == to) {
            add(b, rule, 1, grammar_call(b->done[i].rule));
            return 0;
        }
    }
    if (b->n_done == MAX_DEFINITIONS)
        return refuse(b, place, "$ref", "is one of more than 256 definitions");
    uint32_t target = grammar_rule(b->g);
    b->done[b->n_done].schema = to;
    b->done[b->n_done++].rule = target;
    add(b, rule, 1, grammar_call(target));
    return compile(b, to, target, text, depth + 1);
}

static int check_names(struct build *b, const json_t *schema, const char *place)
{
    static const char *const known[] = {"type",        "properties", "required",    "additionalProperties",
                                        "items",       "minItems",   "maxItems",    "minLength",
                                        "maxLength",   "enum",       "const",       "anyOf",
                                        "$ref",        "$defs",      "definitions", "title",
                                        "description", "default",    "examples",    "$schema",
                                        "$id",         "$comment"};
    const char *name;
    json_t *v;
    json_object_foreach((json_t *)schema, name, v)
    {
        bool found = false;
        for (size_t i = 0; i < ARRAY_LEN(known); i++)
            found = found || strcmp(name, known[i]) == 0;
        if (!found)
            return refuse(b, place, name, "is not supported");
    }
    return 0;
}

static int check_type(struct build *b, const json_t *type, const char *place)
{
    static const char *const known[] = {"object", "array", "string", "number", "integer", "null", "boolean"};
    if (!json_is_string(type))
        return refuse(b, place, "type", "is neither a type nor a list of types");
    for (size_t i = 0; i < ARRAY_LEN(known); i++) {
        if (strcmp(json_string_value(type), known[i]) == 0)
            return 0;
    }
    return refuse(b, place, json_string_value(type), "is no type of JSON");
}

static int check_types(struct build *b, const json_t *types, const char *place)
{
    size_t i;
    const json_t *type;
    int r = 0;
    if (!types || json_array_size(types) == 0)
        return types ? check_type(b, types, place) : 0;
    json_array_foreach(types, i, type)
    {
        r = r == 0 ? check_type(b, type, place) : r;
    }
    return r;
}

/* One of these says all; what stands beside it would have to hold, too, which is not supported. */
static int check_alone(struct build *b, const json_t *schema, const char *place)
{
    static const char *const whole[] = {"$ref", "anyOf", "const", "enum"}, *const other[] = {"properties", "required", "items",
                                                                                             "minItems",   "maxItems", "minLength",
                                                                                             "maxLength"};
    const char *first = NULL;
    for (size_t i = 0; i < ARRAY_LEN(whole); i++) {
        if (json_object_get(schema, whole[i]) && first)
            return refuse(b, place, whole[i], "beside another of '$ref', 'anyOf', 'const' and 'enum' is not supported");
        first = json_object_get(schema, whole[i]) ? whole[i] : first;
    }
    for (size_t i = 0; first && i < ARRAY_LEN(other); i++) {
        if (json_object_get(schema, other[i]))
            return refuse(b, place, other[i], "beside '$ref', 'anyOf', 'const' or 'enum' is not supported");
    }
    if (first && (first[0] == '$' || first[0] == 'a') && json_object_get(schema, "type"))
        return refuse(b, place, "type", "beside '$ref' or 'anyOf' is not supported");
    return 0;
}

/* Without a type: any value; but one of a type that the schema says more of has to be as it says. */
static int add_any_type(struct build *b, const json_t *schema, uint32_t rule, const char *place, unsigned depth)
{
    static const char *const types[] = {"object", "array", "string", "number", "null", "boolean"};
    static const char *const bounds[] = {"required", "additionalProperties", "items", "minItems", "maxItems", "minLength",
                                         "maxLength"};
    bool bounded = false;
    int r = 0;
    for (size_t i = 0; i < ARRAY_LEN(bounds); i++)
        bounded = bounded || json_object_get(schema, bounds[i]);
    if (!bounded)
        add(b, rule, 1, grammar_call(b->value));
    for (size_t i = 0; bounded && r == 0 && i < ARRAY_LEN(types); i++)
        r = add_type(b, schema, types[i], rule, place, depth);
    return r;
}

static int compile(struct build *b, const json_t *schema, uint32_t rule, const char *place, unsigned depth)
{
    if (json_is_true(schema)) {
        add(b, rule, 1, grammar_call(b->value));
        return 0;
    }
    if (!json_is_object(schema) || depth > MAX_DEPTH)
        return refuse(b, place, "schema", depth > MAX_DEPTH ? "is nested too deeply" : "is not an object");
    int r = check_names(b, schema, place);
    if (r == 0)
        r = check_alone(b, schema, place);
    json_t *types = json_object_get(schema, "type"), *v;
    if (r == 0)
        r = check_types(b, types, place);
    if (r < 0)
        return r;
    if ((v = json_object_get(schema, "$ref")))
        return add_reference(b, v, rule, place, depth);
    if ((v = json_object_get(schema, "anyOf")))
        return add_any_of(b, v, rule, place, depth);
    if ((v = json_object_get(schema, "const")))
        return is_of_types(v, types) ? add_constant(b, v, rule) : refuse(b, place, "const", "is not of the 'type' beside it");
    if ((v = json_object_get(schema, "enum")))
        return add_constants(b, v, types, rule, place);
    if (types)
        return add_types(b, schema, types, rule, place, depth);
    if (json_object_get(schema, "properties"))
        return add_object(b, schema, rule, place, depth);
    return add_any_type(b, schema, rule, place, depth);
}

int schema_compile(const json_t *schema, struct grammar **ret, uint32_t *ret_rule, struct err *err)
{
    struct build *b = calloc(1, sizeof(*b));
    struct grammar *g = NULL;
    if (!b || grammar_open(&g) < 0) {
        free(b);
        return err_set(err, -ENOMEM, "schema: out of memory");
    }
    *b = (struct build){.g = g, .root = schema, .err = err};
    add_base(b);
    uint32_t rule = grammar_rule(g);
    int r = 0;
    if (schema)
        r = compile(b, schema, rule, "", 0);
    else
        add(b, rule, 1, grammar_call(b->object));
    free(b);
    int f = grammar_finish(g);
    if (r == 0 && f == -ELOOP)
        r = err_set(err, -EINVAL, "schema: a '$ref' comes back to itself with nothing in between");
    else if (r == 0 && f < 0)
        r = err_set(err, f, f == -ENOMEM ? "schema: out of memory" : "schema: too large; expected fewer or smaller parts");
    if (r < 0) {
        grammar_close(g);
        return r;
    }
    *ret = g;
    *ret_rule = rule;
    return 0;
}
