// The start of a decode step: the id that the last step chose becomes the input, and one more token counts as stored.
//
// With it a recorded step can be repeated without the host in between: every later kernel reads `ids` and `counters` from
// device memory. One thread; a launch of its own costs about a microsecond inside a graph.
//
// advance(ids, next_id, counters, count): grid 1, block 32. ids[0] = *next_id; counters[i * stride] += 1 for i < count.

extern "C" __global__ void __launch_bounds__(32) advance(int* ids, const int* next_id, int* counters, int count, int stride) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    if (threadIdx.x == 0) ids[0] = *next_id;
    if (threadIdx.x < count) counters[threadIdx.x * stride] += 1;
}
