// Package bgp announces VIPs to routers by BGP.
//
// Speaker is a node's half: it announces what it is told to and nothing else,
// imports nothing from its peers, and opens no listening port unless told to. Router is the
// other side, for the lab: it accepts routes and hands them over, and never
// announces any.
//
//	Announce ─► RIB ─► export policy ─► session per peer ─► router
//	                                      │
//	Peers, metrics, log ◄── sessions ◄────┘ states from events, reasons from the library's log
//
// It is the only package that knows GoBGP: no type of the library is in its
// face. It decides nothing: which VIPs are announced, and when, is its
// caller's matter.
//
// RFCs: 4271 (BGP-4), 4760 (multiprotocol), 1997 and 8092 (communities), 2385
// (TCP MD5), 4724 (graceful restart), 5082 (GTSM), 6793 (four-octet AS numbers), 8326 (graceful
// shutdown), 8950 (IPv6 next hops of IPv4), 9003 (shutdown communication, as it is
// received).
package bgp
