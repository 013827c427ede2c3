/* SPDX-License-Identifier: MIT
 * Which type each tensor gets: a preset, then overrides by name. The mixes follow llama.cpp's llama-quantize (src/llama-quant.cpp,
 * llama_tensor_get_type), so that a file called q4_k_m here is what people know under that name. Norms are always f32.
 * Threads: one. */
#ifndef TANDEM_QUANTIZER_RECIPE_H
#define TANDEM_QUANTIZER_RECIPE_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct source;
struct source_tensor;

struct recipe_override {
    const char *pattern; /* POSIX extended regular expression, found anywhere in the tensor's name */
    const char *type;
};

struct recipe_options {
    const char *type; /* a preset; NULL: q8_0 */
    bool pure;        /* a mix without its exceptions: its main type for every matrix */
    const struct recipe_override *overrides;
    uint32_t n_overrides; /* of several that match, the last one counts */
};

struct recipe {
    int *types;  /* enum quant_type, one for each tensor of the source */
    bool *fixed; /* by an override */
    uint32_t n;
    uint32_t file_type;  /* general.file_type: enum llama_ftype of llama.h */
    uint32_t n_fallback; /* tensors whose rows do not fit the type that the preset wants */
    char name[16];
};

/* "f32, f16, ... or q6_k", for help and errors. */
const char *recipe_presets(void);
bool recipe_is_preset(const char *name);
/* "f32, f16, ... or q4_0", of matrices. */
const char *recipe_types(void);
int recipe_make(const struct source *s, const struct recipe_options *o, struct recipe *ret, struct err *err);
/* Only the overrides, on types that are there. */
int recipe_override(const struct source *s, const struct recipe_options *o, struct recipe *r, struct err *err);
void recipe_fini(struct recipe *r);
/* What the preset's type becomes when rows do not fit it: as in llama.cpp; -1 when no type fits. */
int recipe_fitting_type(int type, uint32_t cols);
uint32_t recipe_file_type(int type); /* of a file that is mostly this type */

#endif
