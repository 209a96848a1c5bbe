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
int nvmlDeviceGetClockInfo(void *device, int kind, unsigned int *out) { *out = kind == 1 ? 1410 : 1593; return 0; }
/* Throttle reasons and memory errors: the n-th call gives the n-th of the numbers in a comma-separated list, and the last
   from then on. A negative one is an error code. */
static int listed(const char *name, int *calls, unsigned long long *out) {
    const char *at = getenv(name);
    if (!at) return 3;
    for (int skip = *calls; skip > 0 && strchr(at, ','); skip--) at = strchr(at, ',') + 1;
    ++*calls;
    long long value = atoll(at);
    if (value < 0) return (int)-value;
    *out = (unsigned long long)value;
    return 0;
}
int nvmlDeviceGetTotalEccErrors(void *device, int kind, int counter, unsigned long long *out) {
    static int calls[2];
    return counter ? 3 : listed(kind ? "STUB_UNCORRECTED" : "STUB_CORRECTED", &calls[kind], out);
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned int *out) { *out = 60 + index_of(device); return 0; }
#ifndef OLD_DRIVER
int nvmlDeviceGetPowerUsage(void *device, unsigned int *out) { *out = 150500; return 0; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *out) {
    static int calls;
    return listed("STUB_THROTTLE", &calls, out);
}
#endif
