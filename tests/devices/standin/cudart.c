/* A stand-in for the CUDA runtime: the host's memory, a stream that is always done, and graphs that do nothing. */
#include <stdlib.h>
#include <string.h>
static int capturing = 0;
int cudaStreamCreate(void **stream) { *stream = (void *)1; return 0; }
int cudaStreamSynchronize(void *stream) { return capturing ? 900 : 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 7; return 0; }
int cudaMalloc(void **pointer, size_t size) {
  if (getenv("STANDIN_FAULT") && !strcmp(getenv("STANDIN_FAULT"), "gpu-memory")) return 2;
  *pointer = calloc(1, size);
  return 0;
}
int cudaFree(void *pointer) { free(pointer); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) { memcpy(to, from, size); return 0; }
int cudaStreamBeginCapture(void *stream, int mode) {
  if (getenv("STANDIN_FAULT") && !strcmp(getenv("STANDIN_FAULT"), "capture")) return 901;
  capturing = 1;
  return 0;
}
int cudaStreamEndCapture(void *stream, void **graph) { capturing = 0; *graph = (void *)2; return 0; }
int cudaGraphInstantiate(void **executable, void *graph, void *node, char *log, size_t size) {
  if (node || log || size) return 1;
  *executable = (void *)3;
  return 0;
}
int cudaGraphLaunch(void *executable, void *stream) { return executable == (void *)3 ? 0 : 1; }
int cudaGetLastError(void) { return 0; }
const char *cudaGetErrorString(int code) { return "an error of the stand-in"; }
