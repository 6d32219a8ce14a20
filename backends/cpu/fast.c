/* SPDX-License-Identifier: MIT */
/*
 * Which kernels NUMERICS_FAST uses. All tables share the layout and, by construction, the results to the last bit:
 * rows16.h and index16.h define each sum once, attention is one source. So a model's answers do not depend on the CPU.
 */
#include "backends/cpu/fast.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "backends/cpu/index16.h"
#include "backends/cpu/rows16.h"

static size_t scratch_bytes(const struct model_shape *s)
{
    return MAX(MAX(cpu_kernels_exact.scratch_bytes(s), (size_t)ROWS16_SCRATCH_BYTES), INDEX16_SCRATCH(s));
}

static struct cpu_kernels table(void)
{
    struct cpu_kernels k = cpu_kernels_exact;

    k.layout_id = "rows16";
    k.layout = rows16_layout;
    k.pack = rows16_pack;
    k.row = rows16_row;
    k.activation_bytes = rows16_activation_bytes;
    k.activation = rows16_activation_plain;
    k.matmul[WEIGHT_BF16] = k.matmul[WEIGHT_FP8] = k.matmul[WEIGHT_FP4] = rows16_matmul_plain;
    k.index_query_bytes = index16_query_bytes;
    k.index_query = index16_query;
    k.index_scores = index16_scores_plain;
    k.scratch_bytes = scratch_bytes;
    return k;
}

#if defined(__x86_64__)
#include <cpuid.h>

static bool has_avx2(void)
{
    unsigned a, b, c, d; /* clang 14 does not know "f16c" */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) &&
           (c & bit_F16C);
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

static void use_avx2(struct cpu_kernels *k)
{
    k->isa = "avx2";
    k->activation = rows16_activation_avx2;
    k->matmul[WEIGHT_BF16] = k->matmul[WEIGHT_FP8] = k->matmul[WEIGHT_FP4] = rows16_matmul_avx2;
    k->matmul[WEIGHT_F32] = matmul_f32_avx2;
    k->attend = attend_avx2;
    k->index_scores = index16_scores_avx2;
}

static void use_avx512(struct cpu_kernels *k)
{
    k->isa = "avx512";
    k->activation = rows16_activation_avx512;
    k->matmul[WEIGHT_BF16] = k->matmul[WEIGHT_FP8] = k->matmul[WEIGHT_FP4] = rows16_matmul_avx512;
    k->matmul[WEIGHT_F32] = matmul_f32_avx512;
    k->attend = attend_avx512;
    k->index_scores = index16_scores_avx512;
}
#else
static bool has_avx2(void) { return false; }
static bool has_avx512(void) { return false; }
static void use_avx2(struct cpu_kernels *k) { (void)k; }
static void use_avx512(struct cpu_kernels *k) { (void)k; }
#endif

static const char *const names[] = {"plain", "avx2", "avx512"};
static struct cpu_kernels kernels[ELEMENTS(names)];

static void fill(void)
{
    for (size_t i = 0; i < ELEMENTS(kernels); i++)
        kernels[i] = table();
    use_avx2(&kernels[1]);
    use_avx512(&kernels[2]);
}

int cpu_kernels_fast(const char *isa, const struct cpu_kernels **ret, struct fail *f)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    bool has[] = {true, has_avx2(), has_avx512()};
    size_t best = has[2] ? 2 : has[1] ? 1 : 0, i = best;

    if (isa)
        for (i = 0; i < ELEMENTS(names) && strcmp(isa, names[i]) != 0;)
            i++;
    if (i == ELEMENTS(names))
        return fail_set(f, EINVAL, "RANGE", "isa '%s': expected 'plain', 'avx2' or 'avx512'", isa);
    if (!has[i])
        return fail_set(f, ENOTSUP, "UNSUPPORTED", "this CPU lacks what isa '%s' needs; the best here is '%s'", isa, names[best]);
    pthread_once(&once, fill);
    *ret = &kernels[i];
    return 0;
}
