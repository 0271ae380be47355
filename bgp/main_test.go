package bgp

import (
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const isolated = "HPTEST_BGP_ISOLATED"

// victim asks the test program to be a node that keeps its last words in a file.
const victim = "HPTEST_BGP_LAST_WORDS"

// TestMain moves the process, as root, into a network namespace of its own:
// GoBGP opens its sockets on whatever thread it happens to be on, so all of
// them have to be in one. Only exec makes them so: it leaves one thread.
func TestMain(m *testing.M) {
	if os.Geteuid() == 0 && os.Getenv(isolated) == "" {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			panic(err)
		}
		os.Setenv(isolated, "yes")
		panic(syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
	}
	if words := os.Getenv(victim); words != "" {
		dieOf(words)
	}
	os.Exit(m.Run())
}

// needNamespace skips a test where TestMain could not isolate it, and gives
// the loopback addresses for the routers' ends. A session with one of them has
// the same address at both ends, so the next hop is that address, too.
func needNamespace(t *testing.T, addresses ...string) {
	t.Helper()
	if os.Getenv(isolated) == "" {
		t.Skip("network namespaces and port 179 need root")
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		ip := netip.MustParseAddr(a)
		addr, err := netlink.ParseAddr(netip.PrefixFrom(ip, ip.BitLen()).String())
		if err != nil {
			t.Fatal(err)
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(lo, addr); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { netlink.AddrDel(lo, addr) })
	}
}

// until waits for ok to be free of complaints.
func until(t *testing.T, within time.Duration, ok func() string) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		complaint := ok()
		if complaint == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %s", within, complaint)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
