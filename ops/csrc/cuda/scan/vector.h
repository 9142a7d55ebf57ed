// Neighbouring channels that a thread takes together.
#pragma once

#include "cuda/common/device.h"
#include "tree_scan.h"

namespace grootv {

// As many as make 16 bytes of sums.
template <class T>
constexpr int PACK = 16 / sizeof(acc_type<T>);

template <class T>
struct alignas(PACK<T> * sizeof(T)) Pack {
    T element[PACK<T>];
};

template <class T>
__device__ const Pack<T>& as_pack(const T* elements) {
    return *reinterpret_cast<const Pack<T>*>(elements);
}
template <class T>
__device__ Pack<T>& as_pack(T* elements) {
    return *reinterpret_cast<Pack<T>*>(elements);
}

// f of the elements at each place.
template <class Result, class Function, class... T>
__device__ Pack<Result> map(Function f, const Pack<T>&... packs) {
    Pack<Result> result;
#pragma unroll
    for (int i = 0; i < PACK<Result>; ++i) result.element[i] = f(packs.element[i]...);
    return result;
}

template <class T>
__device__ Pack<T> operator*(const Pack<T>& a, const Pack<T>& b) {
    return map<T>([](T x, T y) { return x * y; }, a, b);
}

template <class To, class T>
__device__ Pack<To> cast(const Pack<T>& pack) {
    return map<To>([](T element) { return static_cast<To>(element); }, pack);
}

template <class T>
__device__ Pack<T> filled(T value) {
    Pack<T> pack;
    for (T& element : pack.element) element = value;
    return pack;
}

}  // namespace grootv
