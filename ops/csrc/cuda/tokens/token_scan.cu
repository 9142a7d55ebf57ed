// The lanes of a channel follow the walk of its sequence. Blocks that share a channel or a state leave parts of the
// sums over states or channels, which are added up afterwards.
#include "token_scan.h"

#include <torch/csrc/stable/library.h>

#include "cuda/tokens/token_stage.h"

namespace grootv {
namespace {

// Scratch of the walk: shared memory, or memory of its own if that is too small.
struct RowMemory {
    std::byte* memory;
    int64_t bytes;  // of a block
};

// The thread's states of every row.
template <class A>
class Rows {
public:
    __device__ Rows(void* shared, const RowMemory& rows)
        : rows_(static_cast<A*>(rows.memory ? static_cast<void*>(rows.memory + blockIdx.x * rows.bytes) : shared)) {}

    __device__ A& at(const Visit& visit, int k) const { return rows_[(visit.row * OWN + k) * THREADS + threadIdx.x]; }

private:
    A* rows_;
};

// The sum of a channel, for all its lanes.
template <class A>
__device__ A sum_group(A value) {
    for (int other = GROUP / 2; other > 0; other /= 2) value += __shfl_xor_sync(~0u, value, other);
    return value;
}

// Calls visited(i, state) for every token, at place i of TOKENS, and done(stage, first) after TOKENS of them.
template <class T, class A, class Visited, class Done>
__device__ void up_pass(const TokenInputs<T>& in, const TokenPlace& place, TokenShared<A>& shared, const Rows<A>& rows,
                        Visited visited, Done done) {
    using std::exp;
    const OwnStates<A> rate = place.load(in, in.rate, 0);
    OwnStates<A> sent{};
    TokenStage<T, false> stage(in, place);
    stage.load(0);
    for (int32_t first = 0; first < in.length; first += TOKENS) {
        stage.store(shared);
        __syncthreads();
        stage.load(first + TOKENS);
        for (int i = 0; i < TOKENS && first + i < in.length; ++i) {
            const Visit visit = shared.visits[i];
            const int at = i * CHANNELS + place.channel;
            const A signal = shared.step[at] * shared.x[at], next_step = shared.next_step[at];
            OwnStates<A> state;
            for (int k = 0; k < OWN; ++k) {
                state.value[k] = signal * shared.write[i * STATES + place.lane + k * GROUP] + sent.value[k];
                sent.value[k] = exp(next_step * rate.value[k]) * state.value[k];
                if (visit.others_sent) sent.value[k] += rows.at(visit, k);
            }
            if (!visit.parent_comes) {
                for (int k = 0; k < OWN; ++k) rows.at(visit, k) = sent.value[k];
                sent = {};
            }
            visited(i, first + i, state);
        }
        __syncthreads();
        done(stage, first);
        __syncthreads();
    }
}

// y goes to the parts of each block of states, if there are several.
template <class T, class A>
__global__ void __launch_bounds__(THREADS)
    token_scan_kernel(TokenInputs<T> in, RowMemory row_memory, T* y, A* y_parts, A* last) {
    auto& shared = *reinterpret_cast<TokenShared<A>*>(shared_memory());
    const TokenPlace place(in);
    const Rows<A> rows(&shared + 1, row_memory);
    auto visited = [&](int i, int32_t p, const OwnStates<A>& state) {
        A sum = 0;
        for (int k = 0; k < OWN; ++k) sum += shared.read[i * STATES + place.lane + k * GROUP] * state.value[k];
        sum = sum_group(sum);
        __syncwarp();  // all have read x
        if (place.lane == 0) shared.x[i * CHANNELS + place.channel] = sum;
        if (p + 1 == in.length) place.store(in, state, last);
    };
    up_pass(in, place, shared, rows, visited, [&](const TokenStage<T, false>& stage, int32_t first) {
        stage.for_each_entry(shared, first, [&](int e, int32_t token, int64_t c) {
            const int64_t i = (place.item * in.length + token) * in.channels + c;
            if (y_parts)
                y_parts[place.state_block * in.size() + i] = shared.x[e];
            else
                y[i] = static_cast<T>(shared.x[e]);
        });
    });
}

// ---- its gradient

// What the blocks leave to be added up, over state blocks, items or channel blocks, and the states they come back to.
template <class A>
struct Parts {
    A* signal;        // (state blocks, B, L, D): the gradient of the step times x
    A* next_step;     // (state blocks, B, L, D): that of the following token's step by the decay, at that token
    A* rate;          // (B, D, N)
    A *write, *read;  // (channel blocks, B, L, N)
    A* states;        // (blocks, L, used, THREADS), by place of the walk
};

// Adds up 2 OWN values over the channels of a warp. The lanes of channel c keep that of value c % (2 OWN).
template <class A>
__device__ A sum_channels(A (&value)[2 * OWN]) {
    static_assert(2 * OWN * GROUP == WARP);
#pragma unroll
    for (int half = OWN, other = WARP / 2; half > 0; half /= 2, other /= 2) {
        const bool upper = threadIdx.x & other;
#pragma unroll
        for (int j = 0; j < half; ++j) {
            const A given = upper ? value[j] : value[j + half], kept = upper ? value[j + half] : value[j];
            value[j] = kept + __shfl_xor_sync(~0u, given, other);
        }
    }
    return value[0];
}

template <class T, class A>
__global__ void __launch_bounds__(THREADS)
    token_scan_backward_kernel(TokenInputs<T> in, RowMemory row_memory, const T* grad, const A* grad_last,
                               Parts<A> parts) {
    using std::exp;
    auto& shared = *reinterpret_cast<TokenSharedBackward<A>*>(shared_memory());
    const TokenPlace place(in);
    const Rows<A> rows(&shared + 1, row_memory);
    const int used = in.used();
    A* states = parts.states + int64_t{blockIdx.x} * in.length * used * THREADS + place.thread;
    up_pass(
        in, place, shared, rows,
        [&](int, int32_t p, const OwnStates<A>& state) {
            for (int k = 0; k < OWN; ++k)
                if (k < used) states[(int64_t{p} * used + k) * THREADS] = state.value[k];
        },
        [](const TokenStage<T, false>&, int32_t) {});

    auto load_states = [&](int32_t p) {
        OwnStates<A> state{};
        for (int k = 0; k < OWN; ++k)
            if (k < used) state.value[k] = states[(int64_t{p} * used + k) * THREADS];
        return state;
    };
    const OwnStates<A> rate = place.load(in, in.rate, 0);
    OwnStates<A> gradient = place.load(in, grad_last, place.item), ahead = load_states(in.length - 1), rate_sum;
    for (int k = 0; k < OWN; ++k) rate_sum.value[k] = in.walks.valid[place.item] ? A{0} : A(NAN);
    TokenStage<T, true> stage(in, place, grad);
    int32_t first = (in.length - 1) / TOKENS * TOKENS;
    stage.load(first);
    for (; first >= 0; first -= TOKENS) {
        stage.store(shared);
        __syncthreads();
        if (first > 0) stage.load(first - TOKENS);
        const int count = in.length - first < TOKENS ? in.length - first : TOKENS;
        OwnStates<A> rate_part{};
        for (int i = count - 1; i >= 0; --i) {
            const OwnStates<A> state = ahead;
            if (first + i > 0) ahead = load_states(first + i - 1);
            const Visit visit = shared.visits[i];
            const bool root = first + i + 1 == in.length;
            const int at = i * CHANNELS + place.channel;
            const A signal = shared.step[at] * shared.x[at], next_step = shared.next_step[at], from_y = shared.grad[at];
            A from_signal = 0, from_decay = 0, products[2 * OWN];
            for (int k = 0; k < OWN; ++k) {
                const int n = i * STATES + place.lane + k * GROUP;
                if (!visit.parent_comes)
                    gradient.value[k] = rows.at(visit, k);
                else if (visit.others_sent)
                    rows.at(visit, k) = gradient.value[k];
                if (!root) {
                    gradient.value[k] *= exp(next_step * rate.value[k]);
                    const A exponent = gradient.value[k] * state.value[k];
                    from_decay += exponent * rate.value[k];
                    rate_part.value[k] += next_step * exponent;
                }
                gradient.value[k] += from_y * shared.read[n];
                from_signal += gradient.value[k] * shared.write[n];
                products[k] = signal * gradient.value[k];
                products[OWN + k] = from_y * state.value[k];
            }
            from_signal = sum_group(from_signal), from_decay = sum_group(from_decay);
            const A sum = sum_channels(products);
            const int warp = place.thread / WARP, value = place.channel % (2 * OWN);
            shared.sums[((i * WARPS + warp) * 2 + value / OWN) * STATES + place.lane + value % OWN * GROUP] = sum;
            __syncwarp();  // all have read x and next_step
            if (place.lane == 0) shared.x[at] = from_signal, shared.next_step[at] = from_decay;
        }
        for (int k = 0; k < OWN; ++k) rate_sum.value[k] += rate_part.value[k];
        __syncthreads();
        stage.for_each_entry(shared, first, [&](int e, int32_t token, int64_t c) {
            const int64_t i = (place.item * in.length + token) * in.channels + c;
            parts.signal[place.state_block * in.size() + i] = shared.x[e];
            if (token + 1 < in.length)
                parts.next_step[place.state_block * in.size() + i + in.channels] = shared.next_step[e];
        });
        for (int e = place.thread; e < count * 2 * STATES; e += THREADS) {
            const int i = e / (2 * STATES), value = e % (2 * STATES);
            const int64_t n = place.first_state + value % STATES;
            if (n >= in.states) continue;
            A sum = 0;
            for (int warp = 0; warp < WARPS; ++warp) sum += shared.sums[(i * WARPS + warp) * 2 * STATES + value];
            const int64_t row = (place.channel_block * in.batch + place.item) * in.length + shared.visits[i].token;
            (value < STATES ? parts.write : parts.read)[row * in.states + n] = sum;
        }
        __syncthreads();
    }
    place.store(in, rate_sum, parts.rate);
}

constexpr int ROWS = 256;  // tokens of one block of the second kernel

template <class T, class A = acc_type<T>>
struct Gradients {
    T *x, *delta;
    A* bias_part;  // (blocks of ROWS tokens, D)
};

// One block passes on the gradients of ROWS tokens and WARP channels; its warps take whole rows of them.
template <class T, class A>
__global__ void token_scan_pass_on_kernel(TokenInputs<T> in, Parts<A> parts, Gradients<T> gradients) {
    auto* sums = reinterpret_cast<A*>(shared_memory());
    const int thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP, warps = blockDim.x / WARP;
    const int64_t columns = (in.channels + WARP - 1) / WARP, block = blockIdx.x / columns;
    const int64_t c = blockIdx.x % columns * WARP + lane, rows = in.batch * in.length;
    const int64_t begin = block * ROWS, end = begin + ROWS < rows ? begin + ROWS : rows;
    A bias_sum = 0;
    for (int64_t row = begin + warp; row < end && c < in.channels; row += warps) {
        const int64_t i = row * in.channels + c;
        A from_signal = 0, from_decay = 0;
        for (int64_t part = i; part < in.state_blocks() * in.size(); part += in.size()) {
            from_signal += parts.signal[part];
            if (row % in.length > 0) from_decay += parts.next_step[part];  // the first token follows none
        }
        const A shifted = in.shifted(in.delta[i], c);
        const A grad_step = from_signal * static_cast<A>(in.x[i]) + from_decay;
        const A grad_shifted = grad_step * in.step_slope(shifted);
        gradients.x[i] = static_cast<T>(from_signal * in.step(shifted));
        gradients.delta[i] = static_cast<T>(grad_shifted);
        bias_sum += grad_shifted;
    }
    sums[thread] = bias_sum;
    __syncthreads();
    if (warp > 0 || c >= in.channels) return;
    for (int other = 1; other < warps; ++other) bias_sum += sums[other * WARP + lane];
    gradients.bias_part[block * in.channels + c] = bias_sum;
}

// ---- launches

// The arguments, made contiguous, and what all kernels of a call need.
struct TokenScan {
    TokenScan(const TokenScanArguments& sizes, const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
              const Tensor& C, const std::optional<Tensor>& delta_bias, const Tensor& order, const Tensor& parent,
              bool with_softplus)
        : sizes(sizes),
          device(sizes.function, x),
          workspace(x),
          x(as_contiguous(x)),
          delta(as_contiguous(delta)),
          rate(as_contiguous(A)),
          write(as_contiguous(B)),
          read(as_contiguous(C)),
          order(as_contiguous(order)),
          parent(as_contiguous(parent)),
          with_softplus(with_softplus) {
        if (delta_bias) bias = as_contiguous(*delta_bias);
        check_batch(sizes.function, sizes.batch, sizes.length);
    }

    bool empty() const { return sizes.batch * sizes.channels * sizes.states == 0; }

    template <class T>
    TokenInputs<T> inputs() {
        using Accumulated = acc_type<T>;
        return {x.const_data_ptr<T>(),
                delta.const_data_ptr<T>(),
                write.const_data_ptr<T>(),
                read.const_data_ptr<T>(),
                rate.const_data_ptr<Accumulated>(),
                bias ? bias->const_data_ptr<Accumulated>() : nullptr,
                with_softplus,
                walk_tokens(device, workspace, order.const_data_ptr<int32_t>(), parent.const_data_ptr<int32_t>(),
                            sizes.batch, sizes.length),
                sizes.batch,
                sizes.channels,
                sizes.states,
                static_cast<int32_t>(sizes.length)};
    }

    // Launches a kernel of THREADS threads; shared_bytes is what it needs without its rows.
    template <class T, class... Parameters, class... Arguments>
    void launch(void (*kernel)(TokenInputs<T>, RowMemory, Parameters...), const TokenInputs<T>& in,
                int64_t shared_bytes, Arguments... arguments) {
        using A = acc_type<T>;
        RowMemory rows{nullptr, TokenWalks::rows(in.length) * THREADS * OWN * static_cast<int64_t>(sizeof(A))};
        if (shared_bytes + rows.bytes > device.shared_bytes())
            rows.memory = workspace.take<std::byte>(in.blocks() * rows.bytes);
        else
            shared_bytes += rows.bytes;
        device.launch(kernel, dim3(static_cast<unsigned>(in.blocks())), THREADS, shared_bytes, in, rows, arguments...);
    }

    const TokenScanArguments& sizes;
    const Device device;
    Workspace workspace;
    Tensor x, delta, rate, write, read, order, parent;
    std::optional<Tensor> bias;
    bool with_softplus;
};

// The sum over the first dimension.
Tensor sum_parts(const Tensor& parts, ScalarType dtype) {
    const int64_t dim = 0;
    Tensor sum = torch::stable::sum(parts, {{&dim, 1}});
    return sum.scalar_type() == dtype ? sum : torch::stable::to(sum, dtype);
}

std::tuple<Tensor, Tensor> token_scan(const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
                                      const Tensor& C, const std::optional<Tensor>& delta_bias, const Tensor& order,
                                      const Tensor& parent, bool delta_softplus) {
    TokenScanArguments sizes("token_scan", x, delta, A, B, C, delta_bias, order, parent);
    TokenScan scan(sizes, x, delta, A, B, C, delta_bias, order, parent, delta_softplus);
    Tensor y = torch::stable::new_empty(x, {sizes.batch, sizes.length, sizes.channels});
    Tensor state = torch::stable::new_empty(A, {sizes.batch, sizes.channels, sizes.states});
    if (scan.empty()) {
        torch::stable::fill_(y, 0);
        return {y, state};
    }
    dispatch_floating(x, [&](auto zero) {
        using T = decltype(zero);
        using Accumulated = acc_type<T>;
        const auto in = scan.template inputs<T>();
        const bool parted = in.state_blocks() > 1;
        const int64_t parts = parted ? in.state_blocks() : 0;
        Tensor y_parts = torch::stable::new_empty(A, {parts, sizes.batch, sizes.length, sizes.channels});
        scan.launch(token_scan_kernel<T, Accumulated>, in, sizeof(TokenShared<Accumulated>), y.mutable_data_ptr<T>(),
                    parted ? y_parts.mutable_data_ptr<Accumulated>() : nullptr, state.mutable_data_ptr<Accumulated>());
        if (parted) y = sum_parts(y_parts, sizes.dtype);
    });
    return {y, state};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> token_scan_backward(
    const Tensor& grad, const Tensor& grad_state, const Tensor& x, const Tensor& delta, const Tensor& A,
    const Tensor& B, const Tensor& C, const std::optional<Tensor>& delta_bias, const Tensor& order,
    const Tensor& parent, bool delta_softplus) {
    TokenScanArguments sizes("token_scan_backward", x, delta, A, B, C, delta_bias, order, parent);
    sizes.check_grads(grad, grad_state, x);
    TokenScan scan(sizes, x, delta, A, B, C, delta_bias, order, parent, delta_softplus);
    const int64_t batch = sizes.batch, length = sizes.length, channels = sizes.channels, states = sizes.states;
    const int64_t channel_blocks = (channels + CHANNELS - 1) / CHANNELS,
                  row_blocks = (batch * length + ROWS - 1) / ROWS;
    Tensor g = as_contiguous(grad), g_state = as_contiguous(grad_state);
    Tensor grad_x = torch::stable::new_empty(x, {batch, length, channels});
    Tensor grad_delta = torch::stable::new_empty(x, {batch, length, channels});
    Tensor rate_part = torch::stable::new_empty(A, {batch, channels, states});
    Tensor write_part = torch::stable::new_empty(A, {channel_blocks, batch, length, states});
    Tensor read_part = torch::stable::new_empty(A, {channel_blocks, batch, length, states});
    Tensor bias_part = torch::stable::new_empty(A, {row_blocks, channels});
    if (scan.empty()) {
        for (Tensor* gradient : {&grad_x, &grad_delta, &bias_part}) torch::stable::fill_(*gradient, 0);
    } else {
        dispatch_floating(x, [&](auto zero) {
            using T = decltype(zero);
            using Accumulated = acc_type<T>;
            auto take = [&](int64_t count) { return scan.workspace.template take<Accumulated>(count); };
            const auto in = scan.template inputs<T>();
            Parts<Accumulated> parts{
                take(in.state_blocks() * in.size()),       take(in.state_blocks() * in.size()),
                rate_part.mutable_data_ptr<Accumulated>(), write_part.mutable_data_ptr<Accumulated>(),
                read_part.mutable_data_ptr<Accumulated>(), take(in.blocks() * length * in.used() * THREADS)};
            scan.launch(token_scan_backward_kernel<T, Accumulated>, in, sizeof(TokenSharedBackward<Accumulated>),
                        g.const_data_ptr<T>(), g_state.const_data_ptr<Accumulated>(), parts);
            Gradients<T> gradients{grad_x.mutable_data_ptr<T>(), grad_delta.mutable_data_ptr<T>(),
                                   bias_part.mutable_data_ptr<Accumulated>()};
            const auto tiles = static_cast<unsigned>(row_blocks * ((channels + WARP - 1) / WARP));
            scan.device.launch(token_scan_pass_on_kernel<T, Accumulated>, dim3(tiles), ITEM_THREADS,
                               ITEM_THREADS * sizeof(Accumulated), in, parts, gradients);
        });
    }
    return {grad_x,
            grad_delta,
            sum_parts(rate_part, sizes.acc_dtype),
            sum_parts(write_part, sizes.dtype),
            sum_parts(read_part, sizes.dtype),
            sum_parts(bias_part, sizes.acc_dtype)};
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, GROOTV_BACKEND, m) {
    m.impl("token_scan", TORCH_BOX(&grootv::token_scan));
    m.impl("token_scan_backward", TORCH_BOX(&grootv::token_scan_backward));
}
