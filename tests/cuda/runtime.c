/* A CUDA runtime for machines without a GPU.

   Device memory is host memory, a stream has always finished, a kernel does nothing. Moments at which a program would
   wait for a GPU are counted. stand_in.py adds what torch calls besides, as functions that do nothing, and computes.

   CUDA_STAND_IN_BYTES   device memory, after which allocations fail; 16 GiB if not set
   CUDA_STAND_IN_DEVICES number of devices, 1 if not set; the second has compute capability 7.5, without bf16 */
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define HOST_BLOCKS 65536

static __thread int device = 0;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t used = 0;
static long waits = 0, next_handle = 0x1000;
static struct { char *start; size_t size; } host_blocks[HOST_BLOCKS];
static int n_host_blocks = 0;

static long number_of(const char *name, long otherwise) {
  const char *text = getenv(name);
  return text ? atol(text) : otherwise;
}
static size_t total_bytes(void) { return (size_t)number_of("CUDA_STAND_IN_BYTES", 16L << 30); }
static cudaError_t wait(void) { __atomic_add_fetch(&waits, 1, __ATOMIC_SEQ_CST); return cudaSuccess; }
static void *handle(void) { return (void *)__atomic_add_fetch(&next_handle, 16, __ATOMIC_SEQ_CST); }

long stand_in_waits(void) { return waits; }

/* devices */
cudaError_t cudaGetDeviceCount(int *n) { *n = (int)number_of("CUDA_STAND_IN_DEVICES", 1); return cudaSuccess; }
cudaError_t cudaGetDevice(int *number) { *number = device; return cudaSuccess; }
cudaError_t cudaSetDevice(int number) { device = number; return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { *version = 13000; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = 13000; return cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int *can, int one, int other) { *can = 0; return cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *most) { *least = 0; *most = -5; return cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr which, int number) {
  switch (which) {
    case cudaDevAttrComputeCapabilityMajor: *value = number == 1 ? 7 : 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = number == 1 ? 5 : 0; break;
    case cudaDevAttrMultiProcessorCount: *value = 100; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    default: *value = 1;
  }
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int number) {
  memset(found, 0, sizeof *found);
  strcpy(found->name, "stand-in without a GPU");
  cudaDeviceGetAttribute(&found->major, cudaDevAttrComputeCapabilityMajor, number);
  cudaDeviceGetAttribute(&found->minor, cudaDevAttrComputeCapabilityMinor, number);
  found->totalGlobalMem = total_bytes();
  found->multiProcessorCount = 100;
  found->warpSize = 32;
  found->maxThreadsPerBlock = found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024;
  found->maxThreadsDim[2] = 64;
  found->maxThreadsPerMultiProcessor = 2048;
  found->maxGridSize[0] = 2147483647;
  found->maxGridSize[1] = found->maxGridSize[2] = 65535;
  found->sharedMemPerBlock = 48 << 10;
  found->sharedMemPerBlockOptin = found->sharedMemPerMultiprocessor = 227 << 10;
  found->regsPerBlock = found->regsPerMultiprocessor = 65536;
  found->l2CacheSize = 50 << 20;
  found->unifiedAddressing = found->canMapHostMemory = 1;
  found->maxBlocksPerMultiProcessor = 32;
  return cudaSuccess;
}

/* memory: each block is a little longer than asked for, as rows of vectors may be read beyond the end */
static cudaError_t take(void **place, size_t size) {
  return posix_memalign(place, 512, (size / 512 + 2) * 512) ? cudaErrorMemoryAllocation : cudaSuccess;
}

typedef struct { size_t size; char rest[504]; } Head; /* before each block of device memory */

cudaError_t cudaMalloc(void **place, size_t size) {
  *place = NULL;
  pthread_mutex_lock(&lock);
  int fits = used + size <= total_bytes();
  if (fits) used += size;
  pthread_mutex_unlock(&lock);
  if (!fits || take(place, size + sizeof(Head))) return cudaErrorMemoryAllocation;
  ((Head *)*place)->size = size;
  *place = (char *)*place + sizeof(Head);
  return cudaSuccess;
}

cudaError_t cudaFree(void *place) {
  if (!place) return cudaSuccess;
  Head *head = (Head *)((char *)place - sizeof(Head));
  pthread_mutex_lock(&lock);
  used -= head->size;
  pthread_mutex_unlock(&lock);
  free(head);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *all) {
  *all = total_bytes();
  *free_bytes = *all - used;
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **place, size_t size, unsigned flags) {
  cudaError_t fault = take(place, size);
  pthread_mutex_lock(&lock);
  if (!fault && n_host_blocks < HOST_BLOCKS) {
    host_blocks[n_host_blocks].start = *place;
    host_blocks[n_host_blocks++].size = size;
  }
  pthread_mutex_unlock(&lock);
  return fault;
}

cudaError_t cudaMallocHost(void **place, size_t size) { return cudaHostAlloc(place, size, 0); }

cudaError_t cudaFreeHost(void *place) {
  pthread_mutex_lock(&lock);
  for (int i = 0; i < n_host_blocks; i++)
    if (host_blocks[i].start == place) {
      host_blocks[i] = host_blocks[--n_host_blocks];
      break;
    }
  pthread_mutex_unlock(&lock);
  free(place);
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *place) {
  memset(found, 0, sizeof *found);
  found->type = cudaMemoryTypeUnregistered;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < n_host_blocks; i++)
    if ((char *)place >= host_blocks[i].start && (char *)place < host_blocks[i].start + host_blocks[i].size)
      found->type = cudaMemoryTypeHost;
  pthread_mutex_unlock(&lock);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
  memmove(to, from, size);
  return wait();
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
  memmove(to, from, size);
  return cudaSuccess;
}
cudaError_t cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t size, cudaStream_t stream) {
  memmove(to, from, size);
  return cudaSuccess;
}
cudaError_t cudaMemset(void *place, int value, size_t size) { memset(place, value, size); return cudaSuccess; }
cudaError_t cudaMemsetAsync(void *place, int value, size_t size, cudaStream_t stream) {
  memset(place, value, size);
  return cudaSuccess;
}

/* streams and events */
cudaError_t cudaDeviceSynchronize(void) { return wait(); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return wait(); }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return wait(); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
  *stream = handle();
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { *stream = handle(); return cudaSuccess; }
cudaError_t cudaStreamCreate(cudaStream_t *stream) { *stream = handle(); return cudaSuccess; }
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) { *priority = 0; return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges,
                                     size_t *n) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { *event = handle(); return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *event) { *event = handle(); return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) { *ms = 0.001f; return cudaSuccess; }
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t call, void *data) { call(data); return cudaSuccess; }

/* what asks about kernels */
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *kernel) {
  memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = 1024;
  found->numRegs = 32;
  found->binaryVersion = found->ptxVersion = 90;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *kernel, int block, size_t shared,
                                                                   unsigned flags) {
  *n = 2;
  return cudaSuccess;
}

/* functions of the driver, by name */
static int nothing(void) { return 0; }
static int context_state(int number, unsigned *flags, int *is_active) {
  if (flags) *flags = 0;
  if (is_active) *is_active = 1;
  return 0;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **call, unsigned version, unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result) {
  *call = strcmp(name, "cuDevicePrimaryCtxGetState") ? (void *)nothing : (void *)context_state;
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPoint(const char *name, void **call, unsigned long long flags,
                                    enum cudaDriverEntryPointQueryResult *result) {
  return cudaGetDriverEntryPointByVersion(name, call, 0, flags, result);
}
