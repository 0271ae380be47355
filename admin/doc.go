// Package admin is a node's window for people and programs: the HTTP endpoint
// with health, metrics and status, the admin socket, the client that speaks to
// it, and the types that travel between the two.
//
// It never decides or changes anything itself: what it answers and what it is
// asked to change are functions that it was handed. Over TCP it only reads;
// what changes a node goes through the socket, whose file mode says who may.
//
// cmd/halfproxy serves it in `run` and calls it from the other subcommands.
package admin
