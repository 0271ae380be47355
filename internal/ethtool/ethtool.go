// Package ethtool has the one setting of a device's that is changed: netlink
// knows of none of them.
package ethtool

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ChecksumOff is `ethtool -K link tx off` in the calling thread's namespace: the
// kernel fills in the checksums of what leaves by the link itself, and cuts it to
// segments, which without that offload is not to be had either.
func ChecksumOff(link string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)

	value := struct{ cmd, data uint32 }{cmd: unix.ETHTOOL_STXCSUM}
	var ifr struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // struct ifreq is 40 bytes
	}
	copy(ifr.name[:unix.IFNAMSIZ-1], link)
	ifr.data = unsafe.Pointer(&value)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr))); errno != 0 {
		return fmt.Errorf("transmit checksum offload of %s: %w", link, errno)
	}
	return nil
}
