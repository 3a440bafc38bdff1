/* Four taps per line on uint8 RGB: the compiled twin of numpy_kernel in bicubic.py.
 *
 * The arithmetic is NumPy's, operation by operation in float32, so that both give the same bytes:
 * compile it with -ffp-contract=off and never with -ffast-math. It knows nothing of Python, which
 * calls it through ctypes and so releases its lock.
 */
#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0
#error "this machine computes float32 in a wider type; NumPy does the work instead"
#endif

/* One file for every x86-64 processor: the dynamic linker chooses when it loads the functions.
 * AVX2 is 1.4 times as fast as the default, AVX-512 no faster than AVX2 (Zen 4). */
#if defined(__x86_64__) && defined(__GLIBC__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

enum { TAPS = 4, RGB = 3 };

/* Red, green, blue and what follows them, which is computed along and then overwritten. */
typedef float pixel __attribute__((vector_size(16)));

static inline pixel load(const float *values)
{
    pixel result;
    memcpy(&result, values, sizeof result);
    return result;
}

/* Along one row: `num` source pixels at `bytes` become `width` pixels in `wide`, and one value more.
 * `columns` are counted from `first`, the source column of `bytes`. `line` takes num + 3 pixels and
 * one value more: blank ones beyond the edges meet taps of weight 0.
 */
FOR_EACH_PROCESSOR
static void stretch(const uint8_t *restrict bytes, ptrdiff_t num, const int64_t *restrict columns,
                    ptrdiff_t first, const float *restrict weights, ptrdiff_t width,
                    float *restrict line, float *restrict wide)
{
    memset(line, 0, RGB * sizeof *line);
    for (ptrdiff_t i = 0; i < RGB * num; i++)
        line[RGB + i] = bytes[i];
    memset(line + RGB + RGB * num, 0, (2 * RGB + 1) * sizeof *line);

    for (ptrdiff_t x = 0; x < width; x++) {
        const float *taps = line + RGB * (columns[x] - first);
        pixel total = load(taps) * weights[x];
        total += load(taps + RGB) * weights[width + x];
        total += load(taps + 2 * RGB) * weights[2 * width + x];
        total += load(taps + 3 * RGB) * weights[3 * width + x];
        memcpy(wide + RGB * x, &total, sizeof total);
    }
}

/* Down four stretched rows, rounded half to even and clipped. */
FOR_EACH_PROCESSOR
static void blend(const float *restrict a, const float *restrict b, const float *restrict c,
                  const float *restrict d, const float weights[TAPS], ptrdiff_t count,
                  uint8_t *restrict out)
{
    const float whole = 12582912.0f; /* 1.5 * 2^23: what is added to it loses its fraction */

    for (ptrdiff_t i = 0; i < count; i++) {
        float total = a[i] * weights[0];
        total += b[i] * weights[1];
        total += c[i] * weights[2];
        total += d[i] * weights[3];
        total = (total + whole) - whole;
        total = total < 0.0f ? 0.0f : total;
        total = total > 255.0f ? 255.0f : total;
        out[i] = (uint8_t)(int32_t)total;
    }
}

static ptrdiff_t clamp(ptrdiff_t i, ptrdiff_t count)
{
    return i < 0 ? 0 : i < count ? i : count - 1;
}

/* source: src_height rows of src_width pixels, `stride` bytes apart.
 * rows (height), columns (width): the second of the four taps, ascending; weights: (4, n) each.
 * scratch: 3 (src_width + 3) + 1 and 4 (3 width + 1) values. out: (height, width, 3).
 */
void irv2_bicubic(const uint8_t *source, ptrdiff_t stride, ptrdiff_t src_height,
                  ptrdiff_t src_width, const int64_t *rows, const float *row_weights,
                  ptrdiff_t height, const int64_t *columns, const float *column_weights,
                  ptrdiff_t width, float *scratch, uint8_t *out)
{
    ptrdiff_t first = clamp(columns[0] - 1, src_width);
    ptrdiff_t num = clamp(columns[width - 1] + 2, src_width) + 1 - first;
    float *line = scratch, *wide[TAPS];
    ptrdiff_t held[TAPS] = {-1, -1, -1, -1}; /* which source row each stretched one is of */

    for (int slot = 0; slot < TAPS; slot++)
        wide[slot] = scratch + RGB * (src_width + 3) + 1 + slot * (RGB * width + 1);

    for (ptrdiff_t y = 0; y < height; y++) {
        float weights[TAPS];
        const float *taps[TAPS];
        for (int tap = 0; tap < TAPS; tap++) {
            ptrdiff_t row = clamp(rows[y] - 1 + tap, src_height);
            int slot = row % TAPS; /* four neighbours never share one */
            if (held[slot] != row)
                stretch(source + row * stride + RGB * first, num, columns, first, column_weights,
                        width, line, wide[slot]);
            held[slot] = row;
            taps[tap] = wide[slot];
            weights[tap] = row_weights[tap * height + y];
        }
        blend(taps[0], taps[1], taps[2], taps[3], weights, RGB * width, out + RGB * width * y);
    }
}
