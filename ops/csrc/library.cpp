// Every operator's schema. Kernels register themselves in cpu/ and cuda/; fake kernels, autograd and
// autocast are registered in Python, by ops/_register.py.
#include "tensor.h"

STABLE_TORCH_LIBRARY(grootv, m) {
    m.def("grid_edge_weight(Tensor features, str metric) -> Tensor");

    m.def("minimum_spanning_tree(Tensor edge_weight, SymInt height, SymInt width) -> Tensor");
    // wait: whether to wait for the device and report what is wrong with the edges themselves.
    m.def(
        "minimum_spanning_tree_from_edges(Tensor edges, Tensor edge_weight, SymInt num_vertices, bool wait=True)"
        " -> Tensor");

    m.def(
        "breadth_first_order(Tensor tree_edges, SymInt height, SymInt width, SymInt root)"
        " -> (Tensor order, Tensor parent)");
    m.def(
        "breadth_first_order_from_edges(Tensor edges, Tensor tree_edges, SymInt num_vertices, SymInt root,"
        " bool wait=True) -> (Tensor order, Tensor parent)");
    m.def(
        "build_tree(Tensor features, str metric, SymInt root)"
        " -> (Tensor order, Tensor parent)");

    m.def("tree_edge_distance(Tensor features, Tensor order, Tensor parent, str metric) -> Tensor");
    m.def(
        "tree_edge_distance_backward(Tensor grad, Tensor features, Tensor order, Tensor parent, str metric)"
        " -> Tensor");

    // The order in which a CUDA device scans trees, (B, 7 L + 256) int32; scans that do not get it make it. They scan
    // it in place of order and parent, which it has to be made of: a whole tensor that heavy_light did not make of as
    // many trees gives NaN, one that was changed afterwards reads anything. It is empty on a CPU, which ignores the
    // argument. Errors name the scan `function`.
    m.def("heavy_light(Tensor order, Tensor parent, str function) -> Tensor");

    m.def(
        "tree_scan(Tensor input, Tensor decay, Tensor order, Tensor parent, str direction,"
        " Tensor? decomposition=None) -> Tensor");
    m.def(
        "tree_scan_backward(Tensor grad, Tensor input, Tensor decay, Tensor order, Tensor parent,"
        " str direction, Tensor? decomposition=None) -> (Tensor grad_input, Tensor grad_decay)");

    m.def(
        "selective_tree_scan(Tensor x, Tensor delta, Tensor A, Tensor B, Tensor? delta_bias, Tensor? distance,"
        " Tensor? scale, Tensor order, Tensor parent, bool delta_softplus, Tensor? decomposition=None) -> Tensor");
    m.def(
        "selective_tree_scan_backward(Tensor grad, Tensor x, Tensor delta, Tensor A, Tensor B, Tensor? delta_bias,"
        " Tensor? distance, Tensor? scale, Tensor order, Tensor parent, bool delta_softplus,"
        " Tensor? decomposition=None)"
        " -> (Tensor grad_x, Tensor grad_delta, Tensor grad_A, Tensor grad_B, Tensor grad_delta_bias,"
        " Tensor grad_distance, Tensor grad_scale)");

    m.def("token_edge_weight(Tensor x, Tensor B, Tensor context, SymInt reach) -> Tensor");
    m.def(
        "token_scan(Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? delta_bias, Tensor order,"
        " Tensor parent, bool delta_softplus) -> (Tensor y, Tensor state)");
    m.def(
        "token_scan_backward(Tensor grad, Tensor grad_state, Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C,"
        " Tensor? delta_bias, Tensor order, Tensor parent, bool delta_softplus) -> (Tensor grad_x, Tensor grad_delta,"
        " Tensor grad_A, Tensor grad_B, Tensor grad_C, Tensor grad_delta_bias)");

    m.def(
        "gated_read_out(Tensor h, Tensor C, Tensor x, Tensor D, Tensor z, Tensor h_weight, Tensor h_bias,"
        " Tensor y_weight, Tensor y_bias, float eps) -> Tensor");
    m.def(
        "gated_read_out_backward(Tensor grad, Tensor h, Tensor C, Tensor x, Tensor D, Tensor z, Tensor h_weight,"
        " Tensor h_bias, Tensor y_weight, Tensor y_bias, float eps)"
        " -> (Tensor grad_h, Tensor grad_C, Tensor grad_x, Tensor grad_D, Tensor grad_z, Tensor grad_h_weight,"
        " Tensor grad_h_bias, Tensor grad_y_weight, Tensor grad_y_bias)");
}
