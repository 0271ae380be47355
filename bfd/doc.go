// Package bfd tells two systems within a few packets' time that the way between
// them is broken: Bidirectional Forwarding Detection (RFC 5880) in asynchronous
// mode, to a neighbour on the link (RFC 5881) or several hops away (RFC 5883).
//
// Session is the state machine of one session: pure, time comes in as an argument.
// Speaker gives sessions their sockets and their clock. Server and Client put a
// Speaker into a process of its own, which a busy daemon cannot starve and which
// goes on while the daemon restarts.
//
// Echo mode is not spoken, and demand mode is honoured when the other side asks
// for it. Of authentication there is meticulous keyed SHA1 (RFC 5880, 6.7.4).
package bfd
