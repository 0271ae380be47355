package admin

import "net"

// Addr is where the i-th listener is bound: TCP first, then the socket.
func (s *Server) Addr(i int) net.Addr { return s.listeners[i].Addr() }
