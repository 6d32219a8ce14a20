/* SPDX-License-Identifier: MIT */
/* Layout "rows16": stored rows to interleaved groups, while loading. See rows16.h. */
#include "backends/cpu/rows16.h"

#include <errno.h>
#include <string.h>

#include "backends/cpu/mat.h"
#include "base/size.h"

static const size_t value_bytes[] = {[WEIGHT_BF16] = 2, [WEIGHT_FP8] = 1, [WEIGHT_F32] = 4};

int rows16_layout(enum weight_type type, uint32_t rows, uint32_t cols, struct weight_layout *ret)
{
    size_t padded, bytes, scales = 0;

    if (!size_align(rows, type == WEIGHT_F32 ? 1 : ROWS16, &padded) || !size_mul(padded, cols, &bytes))
        return -EOVERFLOW;
    *ret = (struct weight_layout){.row_group = type == WEIGHT_F32 ? 1 : ROWS16, .scale_group = 1};
    if (type == WEIGHT_FP4) {
        if (cols % INDEX_BLOCK != 0)
            return -EINVAL;
        bytes /= 2;
        scales = padded * (cols / INDEX_BLOCK);
        ret->scale_group = ROWS16;
    } else if (!size_mul(bytes, value_bytes[type], &bytes)) {
        return -EOVERFLOW;
    }
    if (type == WEIGHT_FP8)
        scales = div_up(rows, FP8_BLOCK) * div_up(cols, FP8_BLOCK);
    ret->data_bytes = bytes;
    ret->scale_bytes = scales;
    return 0;
}

/* Columns k0 .. cols - 1 of [n <= 16][cols] values to [cols][16]. Blocks of 64 keep both sides in the cache. */
#define PACK_VALUES(type)                                                                            \
    static void pack_##type(const void *src, uint32_t n, uint32_t k0, uint32_t cols, void *dst)       \
    {                                                                                                \
        for (uint32_t k1; k0 < cols; k0 = k1) {                                                      \
            k1 = MIN(k0 + 64, cols);                                                                 \
            for (uint32_t lane = 0; lane < n; lane++) {                                              \
                const char *in = (const char *)src + ((size_t)lane * cols + k0) * sizeof(type);      \
                type *out = (type *)dst + (size_t)k0 * ROWS16 + lane;                                \
                for (uint32_t k = k0; k < k1; k++, in += sizeof(type), out += ROWS16)                \
                    memcpy(out, in, sizeof(type));                                                   \
            }                                                                                        \
        }                                                                                            \
    }
PACK_VALUES(uint8_t)
PACK_VALUES(uint16_t)

/* Four stored bytes hold columns 0 .. 7 in order, low nibble first; ours hold column b and b + 4 in byte b. */
static uint32_t fp4_pairs(uint32_t v)
{
    uint32_t even = v & 0x0f0f0f0f, odd = v >> 4 & 0x0f0f0f0f; /* columns 0 2 4 6 and 1 3 5 7, a byte each */
    uint32_t low = (even & 0xff) | (odd & 0xff) << 8 | (even & 0xff00) << 8 | (odd & 0xff00) << 16;
    uint32_t high = (even >> 16 & 0xff) | (odd >> 16 & 0xff) << 8 | (even >> 24) << 16 | (odd >> 24) << 24;
    return low | high << 4;
}

static void pack_fp4(const uint8_t *src, uint32_t n, uint32_t k0, uint32_t cols, uint8_t *dst)
{
    uint32_t words = cols / 8; /* of 8 columns */

    for (uint32_t lane = 0; lane < n; lane++) {
        const uint8_t *in = src + (size_t)lane * cols / 2;
        for (uint32_t j = k0 / 8; j < words; j++) {
            uint32_t v;
            memcpy(&v, in + j * 4, 4);
            v = fp4_pairs(v);
            memcpy(dst + ((size_t)j * ROWS16 + lane) * 4, &v, 4);
        }
    }
}

static void pack_group(enum weight_type type, uint32_t n, uint32_t cols, const void *src, void *dst)
{
    uint32_t k0 = 0; /* columns done */
#ifdef __SSE2__
    if (n == ROWS16)
        k0 = rows16_pack_sse2(type, cols, src, dst);
#endif
    switch (type) {
    case WEIGHT_FP4:
        pack_fp4(src, n, k0, cols, dst);
        return;
    case WEIGHT_FP8:
        pack_uint8_t(src, n, k0, cols, dst);
        return;
    case WEIGHT_BF16:
        pack_uint16_t(src, n, k0, cols, dst);
        return;
    case WEIGHT_F32:
        return; /* never interleaved */
    }
}

void rows16_pack(enum weight_type type, uint32_t rows, uint32_t cols, enum weight_part part, uint32_t row, uint32_t n,
                 const void *src, void *dst)
{
    (void)rows;
    if (part == WEIGHT_SCALE && type == WEIGHT_FP8) {
        size_t width = div_up(cols, FP8_BLOCK);
        memcpy((char *)dst + row * width, src, n * width);
        return;
    }
    if (part == WEIGHT_SCALE) {
        type = WEIGHT_FP8; /* FP4 scales: bytes, interleaved like FP8 codes */
        cols /= INDEX_BLOCK;
    }
    if (type == WEIGHT_F32) {
        memcpy((char *)dst + (size_t)row * cols * sizeof(float), src, (size_t)n * cols * sizeof(float));
        return;
    }
    struct weight_layout l;
    if (rows16_layout(type, ROWS16, cols, &l) < 0)
        return; /* refused by layout() before */
    size_t group_bytes = l.data_bytes, row_bytes = group_bytes / ROWS16;
    for (uint32_t i = 0; i < n; i += ROWS16)
        pack_group(type, MIN(ROWS16, n - i), cols, (const char *)src + i * row_bytes,
                   (char *)dst + (row + i) / ROWS16 * group_bytes);
}

size_t rows16_activation_bytes(enum weight_type type, uint32_t cols)
{
    return type == WEIGHT_FP4 ? align_up(cols + (size_t)cols / INDEX_BLOCK * 8, 64) : 0;
}

void rows16_row(const struct weight *w, uint32_t row, float *out)
{
    const uint8_t *d = rows16_data(w, row / ROWS16);
    uint32_t lane = row % ROWS16;

    for (uint32_t k = 0; k < w->cols; k++) {
        size_t i = (size_t)k * ROWS16 + lane;
        switch (w->type) {
        case WEIGHT_BF16:
            out[k] = mat_bf16(((const uint16_t *)(const void *)d)[i]);
            break;
        case WEIGHT_FP8:
            out[k] = mat_e4m3[d[i]] * mat_scale(rows16_fp8_scales(w, row / ROWS16)[k / FP8_BLOCK]);
            break;
        case WEIGHT_FP4: {
            uint8_t byte = d[k / INDEX_BLOCK * 256 + k % INDEX_BLOCK / 8 * 64 + lane * 4 + k % 4];
            uint8_t scale = rows16_fp4_scales(w, row / ROWS16)[k / INDEX_BLOCK * ROWS16 + lane];
            out[k] = mat_e2m1[k % 8 < 4 ? byte & 15 : byte >> 4] * mat_scale(scale);
            break;
        }
        case WEIGHT_F32:
            out[k] = ((const float *)w->data)[(size_t)row * w->cols + k];
            break;
        }
    }
}
