// The launches of the scan over tokens and of its gradient.
#include "token_scan.h"

#include "cuda/tokens/token_scan_kernels.h"

namespace grootv {
namespace {

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
          A(as_contiguous(A)),
          B(as_contiguous(B)),
          C(as_contiguous(C)),
          order(as_contiguous(order)),
          parent(as_contiguous(parent)),
          with_softplus(with_softplus) {
        if (delta_bias) bias = as_contiguous(*delta_bias);
        check_batch(sizes.function, sizes.batch, sizes.length);
    }

    bool empty() const { return sizes.batch * sizes.channels * sizes.states == 0; }

    template <class scalar_t>
    TokenInputs<scalar_t> inputs() {
        using acc_t = acc_type<scalar_t>;
        return {x.const_data_ptr<scalar_t>(),
                delta.const_data_ptr<scalar_t>(),
                B.const_data_ptr<scalar_t>(),
                C.const_data_ptr<scalar_t>(),
                A.const_data_ptr<acc_t>(),
                bias ? bias->const_data_ptr<acc_t>() : nullptr,
                with_softplus,
                walk_tokens(device, workspace, order.const_data_ptr<int32_t>(), parent.const_data_ptr<int32_t>(),
                            sizes.batch, sizes.length),
                sizes.batch,
                sizes.channels,
                sizes.states,
                static_cast<int32_t>(sizes.length)};
    }

    // Launches a kernel of TILE_THREADS threads; shared_bytes is what it needs without its rows.
    template <class scalar_t, class... Parameters, class... Args>
    void launch(void (*kernel)(TokenInputs<scalar_t>, RowScratch, Parameters...), const TokenInputs<scalar_t>& in,
                int64_t shared_bytes, Args... args) {
        constexpr int64_t ROW_BYTES = TILE_THREADS * sizeof(LaneStates<acc_type<scalar_t>>);
        RowScratch rows{nullptr, TokenWalks::rows(in.length) * ROW_BYTES};
        if (shared_bytes + rows.bytes > device.shared_bytes())
            rows.memory = workspace.take<std::byte>(in.blocks() * rows.bytes);
        else
            shared_bytes += rows.bytes;
        device.launch(kernel, in.blocks(), TILE_THREADS, shared_bytes, in, rows, args...);
    }

    const TokenScanArguments& sizes;
    const Device device;
    Workspace workspace;
    Tensor x, delta, A, B, C, order, parent;
    std::optional<Tensor> bias;
    bool with_softplus;
};

std::tuple<Tensor, Tensor> token_scan(const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
                                      const Tensor& C, const std::optional<Tensor>& delta_bias, const Tensor& order,
                                      const Tensor& parent, bool delta_softplus) {
    TokenScanArguments sizes("token_scan", x, delta, A, B, C, delta_bias, order, parent);
    TokenScan scan(sizes, x, delta, A, B, C, delta_bias, order, parent, delta_softplus);
    Tensor y = make_empty(x, {sizes.batch, sizes.length, sizes.channels});
    Tensor state = make_empty(A, {sizes.batch, sizes.channels, sizes.states});
    if (scan.empty()) {
        torch::stable::fill_(y, 0);
        return {y, state};
    }
    dispatch_floating(x, [&]<class scalar_t>(scalar_t) {
        using acc_t = acc_type<scalar_t>;
        const auto in = scan.template inputs<scalar_t>();
        const int64_t parts = in.state_tiles() > 1 ? in.state_tiles() : 0;
        Tensor y_parts = make_empty(A, {parts, sizes.batch, sizes.length, sizes.channels});
        scan.launch(token_scan_kernel<scalar_t, acc_t>, in, sizeof(StagedTokens<acc_t>), y.mutable_data_ptr<scalar_t>(),
                    parts > 0 ? y_parts.mutable_data_ptr<acc_t>() : nullptr, state.mutable_data_ptr<acc_t>());
        if (parts > 0) y = sum_parts(y_parts, sizes.dtype);
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
    const int64_t channel_tiles = (channels + TILE_CHANNELS - 1) / TILE_CHANNELS;
    const int64_t row_blocks = (batch * length + BLOCK_ROWS - 1) / BLOCK_ROWS;
    Tensor g = as_contiguous(grad), g_state = as_contiguous(grad_state);
    Tensor grad_x = make_empty(x, {batch, length, channels});
    Tensor grad_delta = make_empty(x, {batch, length, channels});
    Tensor A_part = make_empty(A, {batch, channels, states});
    Tensor B_part = make_empty(A, {channel_tiles, batch, length, states});
    Tensor C_part = make_empty(A, {channel_tiles, batch, length, states});
    Tensor bias_part = make_empty(A, {row_blocks, channels});
    if (scan.empty()) {
        for (Tensor* gradient : {&grad_x, &grad_delta, &bias_part}) torch::stable::fill_(*gradient, 0);
    } else {
        dispatch_floating(x, [&]<class scalar_t>(scalar_t) {
            using acc_t = acc_type<scalar_t>;
            const auto in = scan.template inputs<scalar_t>();
            const int64_t size = in.state_tiles() * in.size();
            auto [signal, next_step, kept] = scan.workspace.template take<acc_t, acc_t, acc_t>(
                size, size, in.blocks() * length * in.used() * TILE_THREADS);
            GradientParts<acc_t> parts{signal,
                                       next_step,
                                       A_part.mutable_data_ptr<acc_t>(),
                                       B_part.mutable_data_ptr<acc_t>(),
                                       C_part.mutable_data_ptr<acc_t>(),
                                       kept};
            scan.launch(token_scan_backward_kernel<scalar_t, acc_t>, in, sizeof(StagedTokensBackward<acc_t>),
                        g.const_data_ptr<scalar_t>(), g_state.const_data_ptr<acc_t>(), parts);
            TokenGradients<scalar_t> gradients{grad_x.mutable_data_ptr<scalar_t>(),
                                               grad_delta.mutable_data_ptr<scalar_t>(),
                                               bias_part.mutable_data_ptr<acc_t>()};
            const int64_t blocks = row_blocks * ((channels + WARP - 1) / WARP);
            scan.device.launch(token_scan_finish_kernel<scalar_t, acc_t>, blocks, ELEMENT_THREADS,
                               ELEMENT_THREADS * sizeof(acc_t), in, parts, gradients);
        });
    }
    return {grad_x,
            grad_delta,
            sum_parts(A_part),
            sum_parts(B_part, sizes.dtype),
            sum_parts(C_part, sizes.dtype),
            sum_parts(bias_part)};
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, GROOTV_BACKEND, m) {
    GROOTV_IMPL(m, token_scan);
    GROOTV_IMPL(m, token_scan_backward);
}
