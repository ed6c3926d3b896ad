/* Stands for the CUDA driver where there is none: it keeps what it is asked to do. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MOST_LAUNCHES 64
#define MOST_ARGUMENTS 128
#define MOST_MODULES 64
#define MOST_CONTEXTS 4

typedef struct {
  char entry[64];
  uint32_t grid[3], block[3], shared, shared_allowed;
  uint64_t stream;
  uint32_t module, count;
  uint64_t values[MOST_ARGUMENTS];
} Launch;

typedef struct {
  void const *image;
  uint32_t loaded, unloaded;
} Module;

typedef struct {
  char entry[64];
  uint32_t module, shared_allowed;
} Function;

Launch fake_launches[MOST_LAUNCHES];
int fake_launch_count;
Module fake_modules[MOST_MODULES];
int fake_module_count;
static Function functions[MOST_MODULES];

static int capability[2] = {8, 0}, shared_optin = 166912;
static uintptr_t context = 0x1000;
static char failing[64];
static int failing_code;
static char kinds[8][MOST_ARGUMENTS + 1];
static char names[8][64];

void fake_device(int major, int minor, int shared) {
  capability[0] = major;
  capability[1] = minor;
  shared_optin = shared;
}

void fake_context(uintptr_t current) { context = current; }

void fake_fail(char const *function, int code) {
  strncpy(failing, function, sizeof failing - 1);
  failing_code = code;
}

/* What the parameters of an entry are: a letter for each, p for a pointer, i for an int32. */
void fake_parameters(int place, char const *entry, char const *letters) {
  strncpy(names[place], entry, sizeof names[place] - 1);
  strncpy(kinds[place], letters, MOST_ARGUMENTS);
}

static int failed(char const *function) { return strcmp(function, failing) == 0 ? failing_code : 0; }

int cuCtxGetCurrent(void **found) {
  *found = (void *)context;
  return failed("cuCtxGetCurrent");
}

int cuCtxGetDevice(int *device) {
  *device = 0;
  return failed("cuCtxGetDevice");
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
  (void)device;
  *value = attribute == 75 ? capability[0] : attribute == 76 ? capability[1] : attribute == 97 ? shared_optin : -1;
  return failed("cuDeviceGetAttribute");
}

int cuModuleLoadDataEx(void **module, void const *image, unsigned count, int *options, void **values) {
  if (failed("cuModuleLoadDataEx") && count == 2 && options[0] == 5) {
    strncpy((char *)values[0], "the assembler's own words", (uintptr_t)values[1]);
    return failed("cuModuleLoadDataEx");
  }
  fake_modules[fake_module_count].image = image;
  fake_modules[fake_module_count].loaded = 1;
  *module = &fake_modules[fake_module_count++];
  return 0;
}

int cuModuleUnload(void *module) {
  ((Module *)module)->unloaded += 1;
  return 0;
}

int cuModuleGetFunction(void **function, void *module, char const *entry) {
  int place = (int)((Module *)module - fake_modules);
  strncpy(functions[place].entry, entry, sizeof functions[place].entry - 1);
  functions[place].module = (uint32_t)place;
  *function = &functions[place];
  return failed("cuModuleGetFunction");
}

int cuFuncSetAttribute(void *function, int attribute, int value) {
  if (attribute == 8) {
    ((Function *)function)->shared_allowed = (uint32_t)value;
  }
  return failed("cuFuncSetAttribute");
}

int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **arguments, void **extra) {
  Function *known = function;
  Launch *launch = &fake_launches[fake_launch_count++ % MOST_LAUNCHES];
  memset(launch, 0, sizeof *launch);
  memcpy(launch->entry, known->entry, sizeof launch->entry);
  uint32_t grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
  memcpy(launch->grid, grid, sizeof grid);
  memcpy(launch->block, block, sizeof block);
  launch->shared = shared;
  launch->shared_allowed = known->shared_allowed;
  launch->stream = (uint64_t)(uintptr_t)stream;
  launch->module = known->module;
  for (int place = 0; place < 8; ++place) {
    if (strcmp(names[place], known->entry) != 0) {
      continue;
    }
    launch->count = (uint32_t)strlen(kinds[place]);
    for (uint32_t i = 0; i < launch->count; ++i) {
      memcpy(&launch->values[i], arguments[i], kinds[place][i] == 'p' ? 8 : 4);
    }
  }
  return extra == 0 ? failed("cuLaunchKernel") : 1;
}

int cuGetErrorString(int error, char const **words) {
  *words = error == 209 ? "no kernel image is available" : "some error";
  return 0;
}

/* Memory of this process for that of a device. */
int cuInit(unsigned flags) { return (int)flags; }

int cuDeviceGet(int *device, int ordinal) {
  *device = ordinal;
  return 0;
}

int cuDevicePrimaryCtxRetain(void **found, int device) {
  (void)device;
  *found = (void *)context;
  return 0;
}

int cuCtxSetCurrent(void *wanted) { return wanted == (void *)context ? 0 : 201; }

int cuStreamCreate(void **stream, unsigned flags) {
  *stream = (void *)0x7777;
  return flags == 1 ? 0 : 1;
}

int cuStreamSynchronize(void *stream) { return stream == (void *)0x7777 ? 0 : 400; }

int cuMemAlloc_v2(uint64_t *pointer, size_t bytes) {
  *pointer = (uint64_t)(uintptr_t)malloc(bytes);
  return *pointer == 0 ? 2 : 0;
}

int cuMemFree_v2(uint64_t pointer) {
  free((void *)(uintptr_t)pointer);
  return 0;
}

int cuMemcpyHtoD_v2(uint64_t pointer, void const *from, size_t bytes) {
  memcpy((void *)(uintptr_t)pointer, from, bytes);
  return 0;
}

int cuMemcpyDtoH_v2(void *to, uint64_t pointer, size_t bytes) {
  memcpy(to, (void const *)(uintptr_t)pointer, bytes);
  return 0;
}
