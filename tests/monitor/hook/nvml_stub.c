/* A stand-in for the NVIDIA driver's library, for tests on machines without one. It has the functions that
   monitor/hook/system.py calls and one device more than it needs. Errors are chosen by environment variables. */
#include <stdlib.h>
#include <string.h>

typedef struct { unsigned int gpu, memory; } utilization_t;
typedef struct { unsigned long long total, free, used; } memory_t;

static int wanted(const char *name) { const char *v = getenv(name); return v ? atoi(v) : 0; }
static char devices[2];
static int index_of(void *device) { return (int)((char *)device - devices); }

int nvmlInit_v2(void) { return wanted("STUB_INIT"); }
int nvmlInitWithFlags(unsigned int flags) { return wanted("STUB_INIT"); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 9 ? "Driver Not Loaded" : code == 15 ? "GPU is lost" : "error"; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = wanted("STUB_DEVICES"); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) { *device = &devices[index]; return 0; }
int nvmlDeviceGetUtilizationRates(void *device, utilization_t *out) {
    int code = wanted("STUB_LOST");
    if (code) return code;
    out->gpu = 40 + index_of(device); out->memory = 7;
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *device, memory_t *out) {
    out->total = 8ull << 30; out->used = (1ull << 30) * (1 + index_of(device)); out->free = out->total - out->used;
    return 0;
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned int *out) { *out = 60 + index_of(device); return 0; }
#ifndef OLD_DRIVER
int nvmlDeviceGetPowerUsage(void *device, unsigned int *out) { *out = 150500; return 0; }
#endif
