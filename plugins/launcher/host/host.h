// A C interface to the launcher library, as TensorRT would use it: for tests, and for running a plugin without an
// engine. Handles are plugins; a result below 0 or a null handle is a refusal, whose message `host_log` has.
#ifndef ONNXOPT_LAUNCHER_HOST_H
#define ONNXOPT_LAUNCHER_HOST_H

#include <stddef.h>
#include <stdint.h>

extern "C" {

struct HostField {
    char const *name;
    void const *data;
    int32_t type;
    int32_t length;
};

// A tensor's TensorRT type and format, and its sizes. Where `open` is not 0, sizes with that bit are no constants to
// the plugin when it is asked for the shapes of its outputs.
struct HostTensor {
    int32_t type;
    int32_t format;
    int32_t rank;
    int32_t open;
    int64_t sizes[8];
};

// Load a launcher library; 0, or -1 where it cannot be loaded or lacks an entry point.
int32_t host_open(char const *path);

// The same through the plugin registry of TensorRT itself, whose library has to be loaded in this process. Messages
// then go to TensorRT's logger.
int32_t host_open_in_registry(char const *tensorrt, char const *path);

// Messages since the last call, one in a line, in memory that stays until the next call.
char const *host_log();

// The names of the creator's fields, one in a line.
char const *host_field_names();

void *host_create(char const *name, HostField const *fields, int32_t count, int32_t phase);
void *host_clone(void *plugin);
void host_destroy(void *plugin);
int32_t host_fields(void *plugin, HostField *fields, int32_t room);

int32_t host_output_types(void *plugin, HostTensor const *inputs, int32_t count, int32_t *types, int32_t outputs);
int32_t host_output_shapes(void *plugin, HostTensor const *inputs, int32_t count, HostTensor *outputs, int32_t room);
int32_t host_supports(void *plugin, int32_t position, HostTensor const *tensors, int32_t inputs, int32_t outputs);
int32_t host_configure(void *plugin, HostTensor const *tensors, int32_t inputs, int32_t outputs);
int64_t host_workspace(void *plugin, HostTensor const *tensors, int32_t inputs, int32_t outputs);
char const *host_cache_id(void *plugin);
int32_t host_shape_change(void *plugin, HostTensor const *tensors, int32_t inputs, int32_t outputs);
int32_t host_enqueue(
    void *plugin, HostTensor const *tensors, int32_t inputs, int32_t outputs, void const *const *input_pointers,
    void *const *output_pointers, void *workspace, void *stream);
}

#endif
