// Package maglev computes the table that says which backend serves which slot
// of a service's hash space: Eisenbud et al., "Maglev: A Fast and Reliable
// Software Network Load Balancer", NSDI 2016, section 3.4, with weights.
//
// It is one pure function. It knows no health and no packets, and imports the
// standard library only. Every member of a cluster runs it on the same input,
// now and across releases, so what it gives for an input never changes: the
// tables in testdata are a promise to clusters that are being upgraded.
//
// # The permutation
//
// Each backend has an order of its own in which it likes the slots: it starts
// at one of them and goes on by a fixed skip, round the table; the size being
// prime, it comes by every slot once. Backends take turns; in its turn a
// backend takes the first slot of its order that is still free.
//
// # The turns
//
// The paper lets backends take turns in a fixed order. Here a backend of
// weight w takes its k-th turn at the time (k + phase) / w, where phase, in
// [0, 1), is its own. Backends of one weight thus take turns in a fixed order,
// and backends of weights 1 and 2 get slots as 1 to 2 from the first slot to
// the last. Which of two backends' turns comes first depends on these two
// alone: when a third one comes, goes or changes its weight, theirs stay in
// order, and few slots move that need not.
//
// Start, skip and phase come from SHA-256 of the service's and the backend's
// names, so that a backend that leaves two services does not burden the same
// fellow in both, and so that with more backends than slots each service
// leaves out others. Times are compared as integers: the result is the same on
// every processor.
package maglev
