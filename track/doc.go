// Package track is the rules of just enough tracking: where a packet goes whose slot has
// got another backend, and which flows get a record. They are pure functions; the program
// has the first of them in C (xdp/bpf/track.h), and a test holds the two against each other.
package track
