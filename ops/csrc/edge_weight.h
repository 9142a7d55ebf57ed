// Edge weights of the 4-connected grid.
#pragma once

#include <cstdint>
#include <string>

#include "checks.h"
#include "metric.h"

namespace grootv {

// Edges of a grid: (height - 1) * width vertical ones, then height * (width - 1) horizontal ones.
inline int64_t grid_edges(int64_t height, int64_t width) {
    return (height - 1) * width + height * (width - 1);
}

inline Metric parse_metric(const char* function, const std::string& name) {
    if (name == "cosine") return Metric::cosine;
    if (name == "euclidean") return Metric::euclidean;
    check(name == "manhattan", function, ": metric must be one of cosine, euclidean, manhattan, got '", name, "'");
    return Metric::manhattan;
}

// Checked features (B, H, W, C).
struct FeatureMap {
    FeatureMap(const char* function, const Tensor& features, const std::string& metric_name) {
        check_floating(function, "features", features);
        check_dim(function, "features", features, 4, "(B, H, W, C)");
        metric = parse_metric(function, metric_name);
        batch = features.size(0), height = features.size(1), width = features.size(2), channels = features.size(3);
        check_grid(function, height, width);
        vertices = height * width, edges = grid_edges(height, width);
    }

    Metric metric;
    int64_t batch, height, width, channels, vertices, edges;
};

// features: (height * width, channels) row-major. weight: (edges), vertical edges first.
void grid_edge_weight_cpu(const float* features, int32_t height, int32_t width, int64_t channels, Metric metric,
                          float* weight);

// The same for a batch of maps on a CUDA device; `features` is contiguous, of any floating dtype.
class Device;
void grid_edge_weight_cuda(const Device& device, const Tensor& features, const FeatureMap& map, float* weight);

}  // namespace grootv
