package main

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/bfd"
	"github.com/halfproxy/halfproxy/config"
)

func TestBFDIsAskedForAsConfigured(t *testing.T) {
	ip := netip.MustParseAddr
	var cfg config.Config
	cfg.BGP.Peers = []config.Peer{
		{Address: ip("10.0.1.254")},
		{Address: ip("10.0.1.253"), BFD: config.BFD{Interval: time.Second, Multiplier: 5, Password: "secret", KeyID: 7}},
		{Address: ip("10.7.0.1"), LocalAddress: ip("10.0.1.1"), BFD: config.BFD{Interval: 300 * time.Millisecond, Multiplier: 3, Multihop: true, MinTTL: 253}},
	}
	want := []bfd.Peer{
		{Address: ip("10.0.1.253"), Timing: bfd.Timing{Interval: time.Second, Multiplier: 5}, Key: []byte("secret"), KeyID: 7},
		{
			Address: ip("10.7.0.1"), Local: ip("10.0.1.1"), Timing: bfd.Timing{Interval: 300 * time.Millisecond, Multiplier: 3},
			Multihop: true, MinTTL: 253, Key: []byte{},
		},
	}
	if got := bfdPeers(cfg); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// A reload that changes the password, say, ends a session as planned and begins another.
func TestASessionThatWasNeverUpHasNotFailed(t *testing.T) {
	peer := netip.MustParseAddr("10.0.1.254")
	for _, tt := range []struct {
		name   string
		was    bool
		status bfd.Status
		want   bool
	}{
		{"it was up", true, bfd.Status{State: bfd.Down, Ups: 1, Diag: bfd.TimeExpired}, true},
		{"it is up", true, bfd.Status{State: bfd.Up, Ups: 1}, false},
		{"it was down before", false, bfd.Status{State: bfd.Down, Ups: 1}, false},
		{"another was up before", true, bfd.Status{State: bfd.Down}, false},
	} {
		tt.status.Address = peer
		if got := bfdFailed(map[netip.Addr]bool{peer: tt.was}, tt.status); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}
