/* The four kernels of STREAM (McCalpin, 1995) and nothing else: best of `repeats`, bytes as STREAM counts them.
   cc -O3 -march=native -fopenmp stream.c -o stream && ./stream ELEMENTS REPEATS */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

int main(int count, char **arguments) {
    if (count != 3) return 2;
    const long n = atol(arguments[1]), repeats = atol(arguments[2]);
    double *a = malloc(8 * n), *b = malloc(8 * n), *c = malloc(8 * n);
    const double s = 3.0;
    const char *names[4] = {"copy", "scale", "add", "triad"};
    const int arrays[4] = {2, 2, 3, 3};
    double best[4] = {1e9, 1e9, 1e9, 1e9};
#pragma omp parallel for
    for (long i = 0; i < n; i++) a[i] = 1.0, b[i] = 2.0, c[i] = 0.0;
    for (long r = 0; r < repeats; r++)
        for (int k = 0; k < 4; k++) {
            double t = omp_get_wtime();
            if (k == 0) {
#pragma omp parallel for
                for (long i = 0; i < n; i++) c[i] = a[i];
            } else if (k == 1) {
#pragma omp parallel for
                for (long i = 0; i < n; i++) b[i] = s * c[i];
            } else if (k == 2) {
#pragma omp parallel for
                for (long i = 0; i < n; i++) c[i] = a[i] + b[i];
            } else {
#pragma omp parallel for
                for (long i = 0; i < n; i++) a[i] = b[i] + s * c[i];
            }
            t = omp_get_wtime() - t;
            if (r > 0 && t < best[k]) best[k] = t; /* STREAM leaves the first iteration out */
        }
    for (int k = 0; k < 4; k++) printf("%s %.6e\n", names[k], arrays[k] * 8.0 * n / best[k]);
    return a[n / 2] > 0 ? 0 : 1; /* a[], so that no loop is dead */
}
