/* The resampling kernel of another processor, asked through pipes: see cross_kernel.py.
 *
 * A request is seven numbers (the image's stride, height, width; the part's rows, columns; two
 * lengths in bytes: of the image, of the scratch), the image, and the tables of rows and columns.
 * The answer is the part's pixels.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

void irv2_bicubic(const uint8_t *image, ptrdiff_t stride, ptrdiff_t height, ptrdiff_t width,
                  const int64_t *rows, const float *row_weights, ptrdiff_t num_rows,
                  const int64_t *columns, const float *column_weights, ptrdiff_t num_columns,
                  float *scratch, uint8_t *out);

static void *get(size_t num_bytes)
{
    void *bytes = malloc(num_bytes);
    if (!bytes || fread(bytes, 1, num_bytes, stdin) != num_bytes)
        exit(1);
    return bytes;
}

int main(void)
{
    int64_t n[7];
    while (fread(n, sizeof n, 1, stdin) == 1) {
        uint8_t *image = get(n[5]);
        int64_t *rows = get(8 * n[3]);
        float *row_weights = get(16 * n[3]);
        int64_t *columns = get(8 * n[4]);
        float *column_weights = get(16 * n[4]);
        float *scratch = malloc(n[6]);
        uint8_t *out = malloc(3 * n[3] * n[4]);
        irv2_bicubic(image, n[0], n[1], n[2], rows, row_weights, n[3], columns, column_weights,
                     n[4], scratch, out);
        fwrite(out, 3, n[3] * n[4], stdout);
        fflush(stdout);
        free(image), free(rows), free(row_weights), free(columns), free(column_weights);
        free(scratch), free(out);
    }
    return 0;
}
