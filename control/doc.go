// Package control decides what this node should do and makes it so.
//
// It takes in the wanted services, what this node's checks found and what the
// other members report, comes to a verdict on every backend, builds each
// service's table, and hands whole states down: tables to the data plane, VIPs
// to the announcer, this node's report to the other members. The subsystems
// work out the differences themselves.
//
// Two orders hold always. Packets must find their backends before routers send
// any: data plane first, routes last; and on the way down, routes first. And
// every member that holds the same records of the same services comes to the
// same tables: verdicts and tables are functions of those and of nothing else.
//
// It speaks to no kernel, router or member itself, and knows its subsystems by
// the small interfaces below only; cmd/halfproxy proves that they fit.
package control
