package config

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// mostDenied is how many prefixes the program has room for.
const mostDenied = 1 << 20

// mostFaults is how many lines of a deny list are found fault with: a file that is
// something else is wrong in all of them.
const mostFaults = 20

// ReadDenied reads a deny list: a prefix or an address a line, comments from # on.
// Its errors are Errors; a list with one is not to be taken at all.
func ReadDenied(path string) ([]netip.Prefix, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read deny list: %w: name a file that exists, an empty one denies nobody", err)
	}
	return parseDenied(path, data)
}

func parseDenied(path string, data []byte) ([]netip.Prefix, error) {
	r := report{file: path}
	seen := make(map[netip.Prefix]bool)
	var list []netip.Prefix
	lines := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; lines.Scan() && len(r.list) < mostFaults; n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		text = strings.TrimSpace(text)
		if text == "" {
			continue
		}
		prefix, err := parseDeniedLine(text)
		switch {
		case err != nil:
			r.add(place{line: n}, "%q %w", clip(text), err)
		case len(list) == mostDenied:
			r.add(place{line: n}, "%s is one too many: the program has room for %d prefixes, put some together", prefix, mostDenied)
			return nil, r.errors()
		case !seen[prefix]:
			seen[prefix] = true
			list = append(list, prefix)
		}
	}
	if err := lines.Err(); err != nil {
		r.add(place{line: 1}, "is no list of prefixes: %w: write one a line", err)
	}
	return list, r.errors()
}

func parseDeniedLine(text string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		address, addressErr := netip.ParseAddr(text)
		if addressErr != nil || address.Zone() != "" {
			return netip.Prefix{}, errors.New("is neither a prefix nor an address: write 198.51.100.0/24, 2001:db8::/32 or 198.51.100.7, one a line")
		}
		address = address.Unmap()
		prefix = netip.PrefixFrom(address, address.BitLen())
	}
	switch {
	case prefix.Bits() == 0:
		return netip.Prefix{}, errors.New("denies everybody: drain the services in its place")
	case prefix.Addr().Is4In6():
		return netip.Prefix{}, errors.New("is an IPv4 prefix written as IPv6: write it as IPv4")
	case prefix != prefix.Masked():
		return netip.Prefix{}, fmt.Errorf("has bits beyond its length: write %s", prefix.Masked())
	}
	return prefix, nil
}
