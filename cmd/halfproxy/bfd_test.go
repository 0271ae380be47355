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
