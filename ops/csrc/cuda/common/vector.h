// Neighbouring elements that a thread loads, computes and stores together.
#pragma once

#include "cuda/common/device.h"
#include "tree_scan.h"

namespace grootv {

// As many as make 16 bytes of sums.
template <class Element>
constexpr int VECTOR_SIZE = 16 / sizeof(acc_type<Element>);

template <class Element, int SIZE = VECTOR_SIZE<Element>>
struct alignas(SIZE * sizeof(Element)) Vector {
    Element element[SIZE];
};

template <class Element>
__device__ const Vector<Element>& as_vector(const Element* elements) {
    return *reinterpret_cast<const Vector<Element>*>(elements);
}
template <class Element>
__device__ Vector<Element>& as_vector(Element* elements) {
    return *reinterpret_cast<Vector<Element>*>(elements);
}

// f of the elements at each index.
template <class Result, class Function, class... Elements>
__device__ Vector<Result> map(Function f, const Vector<Elements>&... vectors) {
    Vector<Result> result;
#pragma unroll
    for (int i = 0; i < VECTOR_SIZE<Result>; ++i) result.element[i] = f(vectors.element[i]...);
    return result;
}

template <class Element>
__device__ Vector<Element> operator*(const Vector<Element>& a, const Vector<Element>& b) {
    return map<Element>([](auto x, auto y) { return x * y; }, a, b);
}

template <class To, class From>
__device__ Vector<To> cast(const Vector<From>& vector) {
    return map<To>([](auto element) { return static_cast<To>(element); }, vector);
}

template <class Element>
__device__ Vector<Element> filled(Element value) {
    Vector<Element> vector;
    for (Element& element : vector.element) element = value;
    return vector;
}

}  // namespace grootv
