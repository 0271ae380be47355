// Package lab is the whole system on one machine: a client, a router, nodes
// and backends, each in a network namespace of its own. It is what the demo
// shows and what the end-to-end tests test.
//
// The nodes are real: processes of the binary that users run, each with a
// configuration file of its own. The router is the kernel's, with routes from
// GoBGP, FRR or BIRD. Backends are HTTP servers in this process. No packet
// ever leaves the namespaces. It needs root.
//
// cmd/halfproxy may call it, nobody else.
package lab
