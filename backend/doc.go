// Package backend is the backend's half of direct server return: it makes a host
// the owner of VIPs that load balancers send it packets for.
//
//	programs on the interfaces   outer headers come off, the MSS is fitted (xdp)
//	sysctls                      no ARP is answered or sent for what is on lo
//	addresses                    the VIPs on lo
//
// in this order, so that no step makes the host answer for a VIP that the next
// one would keep it from; and back in the opposite order when it stops. IPv6
// needs no sysctl: the kernel answers neighbour solicitations only for addresses
// of the interface that they come in by.
//
// What is changed is written down before it is changed (journal.go), and Close
// takes back exactly that. A process that dies takes the decapsulation along;
// VIPs, sysctls and the fitting of the MSS stay, and the next start knows them for
// its own, by the journal and by the name of the filters.
//
// It answers no requests for the service and checks no health: what it tells at
// /healthz is whether all of the above is in place. It repairs nothing that
// somebody takes away from under it, as that may be how a backend is taken out of
// service by hand; but an interface that is made anew ends Run, and its caller
// starts over. It knows nothing of load balancers but their addresses.
//
// It is called by cmd/halfproxy alone. All of a Backend's life belongs in one
// network namespace, which New is called in.
package backend
