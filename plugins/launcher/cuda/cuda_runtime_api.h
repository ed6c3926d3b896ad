// The two types of CUDA's runtime that TensorRT's public headers name, so that no CUDA toolkit has to be installed.
// They are handles that TensorRT and the driver pass on: what they point to is nobody else's business.
#ifndef ONNXOPT_CUDA_RUNTIME_API_H
#define ONNXOPT_CUDA_RUNTIME_API_H

struct CUstream_st;
struct CUevent_st;
typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;

#endif
