package config

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/halfproxy/halfproxy/internal/words"
	"github.com/halfproxy/halfproxy/lb"
)

// reader makes something of a value that the file gives. Its errors go on where
// path and value left off: `is no duration: write 500ms, 1s or 1m`.
type reader[T any] func(value) (T, error)

// need reads what the file must have. False means that an error is reported.
func need[T any](r *report, v value, remedy string, parse reader[T]) (T, bool) {
	if v.state == absent {
		r.at(v.place, "is missing: %s", remedy)
		return *new(T), false
	}
	return want(r, v, *new(T), parse)
}

// want reads what the file may have, and gives fallback where it does not.
// False means that an error is reported.
func want[T any](r *report, v value, fallback T, parse reader[T]) (T, bool) {
	takes := func(v value) error {
		_, err := parse(v)
		return err
	}
	switch v.state {
	case absent:
		r.note(v.place, note{fallback, true, takes})
		return fallback, true
	case broken:
		return fallback, false
	}
	result, err := parse(v)
	if err != nil {
		r.at(v.place, "%s %w", v, err)
		return fallback, false
	}
	r.note(v.place, note{result, false, takes})
	return result, true
}

// entries reads a list and drops what is wrong in it or there already. It
// gives the places of its results beside them.
func entries[T comparable](r *report, l list[value], parse reader[T]) ([]T, []place) {
	var results []T
	var places []place
	first := map[T]place{}
	for _, v := range l.items {
		result, ok := want(r, v, *new(T), parse)
		if ok && once(r, first, result, v, "remove one of them") {
			results, places = append(results, result), append(places, v.place)
		}
	}
	return results, places
}

// some reports a list that is missing or has no entry.
func some[T any](r *report, l list[T], remedy string) {
	switch {
	case l.state == absent:
		r.at(l.place, "is missing: %s", remedy)
	case l.state == given && len(l.items) == 0:
		r.at(l.place, "has no entry: %s", remedy)
	}
}

// once reports a value whose meaning was in the file before; first has the
// places of those that were.
func once[T comparable](r *report, first map[T]place, meaning T, v value, remedy string) bool {
	before, twice := first[meaning]
	if twice {
		r.at(v.place, "%s is there already, in %s: %s", v, before.seen(v.place), remedy)
		return false
	}
	first[meaning] = v.place
	return true
}

// String is the value as errors show it.
func (v value) String() string {
	if v.kind == text {
		return strconv.Quote(clip(v.text))
	}
	return clip(v.text)
}

// parseText takes any text but none.
func parseText(v value) (string, error) {
	switch {
	case v.kind != text:
		return "", errors.New("is not text: put it in quotes")
	case v.text == "":
		return "", errors.New("is empty: give it a value or remove it")
	}
	return v.text, nil
}

// Names are label values, metric labels, arguments of commands and parts of
// paths: nothing that would need quoting in any of these.
var nameShape = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func parseName(v value) (string, error) {
	if v.kind == text && !nameShape.MatchString(v.text) {
		return "", errors.New("is no name: use up to 64 letters, digits, dots, dashes and underscores, a letter or digit first")
	}
	return parseText(v)
}

func parseInterface(v value) (string, error) {
	// dev_valid_name() in the kernel's net/core/dev.c.
	if v.kind == text && (len(v.text) > 15 || v.text == "." || v.text == ".." || strings.ContainsAny(v.text, "/: \t\n\v\f\r\x00")) {
		return "", errors.New("is no interface name: `ip link` lists them")
	}
	return parseText(v)
}

// oneOf takes one of some words.
func oneOf(known ...string) reader[string] {
	return func(v value) (string, error) {
		if !slices.Contains(known, v.text) {
			return "", fmt.Errorf("is unknown: choose %s", words.Or(known))
		}
		return v.text, nil
	}
}

// named takes the name of one of some values.
func named[T fmt.Stringer](values ...T) reader[T] {
	names := make([]string, len(values))
	for i, x := range values {
		names[i] = x.String()
	}
	word := oneOf(names...)
	return func(v value) (T, error) {
		name, err := word(v)
		if err != nil {
			return *new(T), err
		}
		return values[slices.Index(names, name)], nil
	}
}

func parseBool(v value) (bool, error) {
	if v.kind != boolean {
		return false, errors.New("is neither true nor false: write one of them, without quotes")
	}
	return v.text == "true", nil
}

// between takes a whole number. YAML's other ways to write one (0x10, 0o10,
// 1_000, and 010, which is 8 to some readers) are refused.
func between(least, most int64) reader[int] {
	return func(v value) (int, error) {
		n, err := strconv.ParseInt(v.text, 10, 64)
		switch {
		case v.kind != number && err == nil:
			return 0, errors.New("is text: write the number without quotes")
		case err != nil || strconv.FormatInt(n, 10) != v.text:
			return 0, errors.New("is no whole number: write it in decimal digits alone")
		case n < least || n > most:
			return 0, fmt.Errorf("is out of range: give a number from %d to %d", least, most)
		}
		return int(n), nil
	}
}

// parseASN takes a 4-byte AS number that may stand for an AS.
func parseASN(v value) (uint32, error) {
	if v.kind == number && v.text == "0" {
		return 0, errors.New("is reserved (RFC 7607): give the number of the autonomous system")
	}
	n, err := between(1, 1<<32-1)(v)
	switch n {
	case 23456:
		return 0, errors.New("is AS_TRANS, which only stands in for others (RFC 6793): give the number of the autonomous system")
	case math.MaxUint16, math.MaxUint32:
		return 0, errors.New("is reserved (RFC 7300): give the number of the autonomous system")
	}
	return uint32(n), err
}

func parseDuration(v value) (time.Duration, error) {
	duration, err := time.ParseDuration(v.text)
	switch {
	case v.kind == number:
		return 0, fmt.Errorf("has no unit: write %ss if seconds are meant", v)
	case err != nil:
		return 0, errors.New("is no duration: write 500ms, 1s or 1m")
	}
	return duration, nil
}

// lasting takes a duration within limits.
func lasting(least, most time.Duration) reader[time.Duration] {
	return func(v value) (time.Duration, error) {
		duration, err := parseDuration(v)
		if err == nil && (duration < least || duration > most) {
			err = fmt.Errorf("is out of range: give a duration from %v to %v", least, most)
		}
		return duration, err
	}
}

// parseHoldTime takes what a BGP OPEN can say: two bytes of seconds.
func parseHoldTime(v value) (time.Duration, error) {
	hold, err := parseDuration(v)
	switch {
	case err != nil:
		return 0, err
	case hold == 0:
		return 0, errors.New("would keep the routes of a dead node for ever: give at least 3s")
	case hold < 3*time.Second:
		return 0, errors.New("is not allowed in BGP (RFC 4271, 4.2): give at least 3s")
	case hold > maxHoldTime:
		return 0, errors.New("is longer than BGP can say: give at most 65535s")
	case hold%time.Second != 0:
		return 0, errors.New("is not in whole seconds, which is all that BGP can say: round it")
	}
	return hold, nil
}

const maxHoldTime = 65535 * time.Second

// wholeSeconds takes a duration within limits that BGP can count.
func wholeSeconds(least, most time.Duration) reader[time.Duration] {
	return func(v value) (time.Duration, error) {
		duration, err := lasting(least, most)(v)
		if err == nil && duration%time.Second != 0 {
			err = errors.New("is not in whole seconds, which is all that BGP can count: round it")
		}
		return duration, err
	}
}

// percent is a share.
type percent int

func (p percent) String() string { return fmt.Sprintf("%d%%", int(p)) }

// parseShare takes a share such as 30%, in whole percent.
func parseShare(least percent) reader[percent] {
	return func(v value) (percent, error) {
		digits, sign := strings.CutSuffix(v.text, "%")
		n, err := strconv.ParseUint(digits, 10, 8)
		switch {
		case !sign && v.kind == number:
			return 0, errors.New("has no percent sign: write 30%")
		case !sign || err != nil || n > 100 || percent(n) < least:
			return 0, fmt.Errorf("is no share: write whole percents from %v to 100%%", least)
		}
		return percent(n), nil
	}
}

// parseAddress takes a single unicast address, written the one way that
// compares equal to itself.
func parseAddress(v value) (netip.Addr, error) {
	addr, err := netip.ParseAddr(v.text)
	if err != nil {
		return netip.Addr{}, errors.New("is no IP address: write one such as 192.0.2.1 or 2001:db8::1")
	}
	return addr, unicast(addr)
}

// parsePrefix takes a range of addresses that packets can come from.
func parsePrefix(v value) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(v.text)
	switch {
	case err != nil:
		return netip.Prefix{}, errors.New("is no prefix: write one such as 198.51.100.0/24 or 2001:db8:5::/64")
	case prefix != prefix.Masked():
		return netip.Prefix{}, fmt.Errorf("has bits beyond its length: write %v", prefix.Masked())
	}
	return prefix, unicast(prefix.Addr())
}

// parsePort takes tcp/80, tcp/1000-2000 and tcp/*, and those of the other
// protocols with ports.
func parsePort(v value) (lb.Port, error) {
	name, numbers, _ := strings.Cut(v.text, "/")
	protocols := map[string]lb.Protocol{"tcp": lb.TCP, "udp": lb.UDP, "sctp": lb.SCTP, "udplite": lb.UDPLite}
	port := lb.Port{Protocol: protocols[name]}
	if numbers == "*" && port.Protocol != 0 {
		port.Number, port.Last = 1, 1<<16-1
		return port, nil
	}
	first, last, ranged := strings.Cut(numbers, "-")
	var err error
	if port.Number, err = parsePortNumber(first); err == nil && ranged {
		port.Last, err = parsePortNumber(last)
	}
	switch {
	case err != nil || port.Protocol == 0:
		return lb.Port{}, errors.New("is no port: write tcp/80, tcp/1000-2000 or tcp/*, with tcp, udp, sctp or udplite and ports from 1 to 65535")
	case ranged && port.Last <= port.Number:
		return lb.Port{}, errors.New("is no range of ports: its last one has to be above its first")
	}
	return port, nil
}

func parsePortNumber(digits string) (uint16, error) {
	n, err := strconv.ParseUint(digits, 10, 16)
	if err == nil && (n == 0 || digits[0] == '0') {
		err = strconv.ErrSyntax
	}
	return uint16(n), err
}

// unicast tells what makes addr useless for reaching one host from another.
func unicast(addr netip.Addr) error {
	switch {
	case addr.Is4In6():
		return fmt.Errorf("is an IPv4 address in IPv6 clothes: write %v", addr.Unmap())
	case addr.IsUnspecified():
		return errors.New("is the unspecified address: give the one that others reach")
	case addr.IsMulticast(), addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return errors.New("is no unicast address: give that of one host")
	case addr.Is6() && addr.IsLinkLocalUnicast():
		return errors.New("is link-local and means another host on each interface: give a global or unique local address")
	}
	return nil
}

// parseHashField takes the name of one of a packet's fields, or of those that
// tell connections apart.
func parseHashField(v value) (lb.HashFields, error) {
	fields, ok := lb.ParseHashFields(v.text)
	if !ok {
		return 0, errors.New("is unknown: choose flow, source, destination, source_port or destination_port, some of them in a list")
	}
	return fields, nil
}

// parseVIP takes an address or a prefix that routers can be told of.
func parseVIP(v value) (lb.VIP, error) {
	if strings.Contains(v.text, "/") {
		return parsePrefixVIP(v)
	}
	addr, err := parseAddress(v)
	switch {
	case err != nil:
		return lb.VIP{}, err
	case addr.IsLoopback(), addr.IsLinkLocalUnicast():
		return lb.VIP{}, errors.New("is not routed: a VIP must be an address that clients reach through routers")
	}
	return lb.AddrVIP(addr), nil
}

// unroutable are prefixes none of whose addresses can be a VIP.
var unroutable = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/32"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("255.255.255.255/32"),
	netip.MustParsePrefix("::/127"), netip.MustParsePrefix("::ffff:0:0/96"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

func parsePrefixVIP(v value) (lb.VIP, error) {
	prefix, err := netip.ParsePrefix(v.text)
	switch {
	case err != nil:
		return lb.VIP{}, errors.New("is no prefix: write one such as 203.0.113.0/28 or 2001:db8:10::/64")
	case prefix.Bits() == 0:
		return lb.VIP{}, errors.New("is every address there is, this host's too: give the prefix that clients know")
	case prefix != prefix.Masked():
		return lb.VIP{}, fmt.Errorf("has bits beyond its length: write %v for all of them, %v for the one address", prefix.Masked(), prefix.Addr())
	}
	for _, u := range unroutable {
		if prefix.Overlaps(u) {
			return lb.VIP{}, fmt.Errorf("reaches into %v, which is not routed: a VIP must be addresses that clients reach through routers", u)
		}
	}
	return lb.VIP{Prefix: prefix}, nil
}

// parseBackendAddress takes an address that packets can be sent to.
func parseBackendAddress(v value) (netip.Addr, error) {
	addr, err := parseAddress(v)
	if err == nil && addr.IsLoopback() {
		return netip.Addr{}, errors.New("is the loopback address: a backend is reached through the network")
	}
	return addr, err
}

// serverIDOf takes a QUIC server ID of so many bytes. Digits alone make it a
// number to YAML: what counts is how it is written.
func serverIDOf(length int) reader[lb.ServerID] {
	return func(v value) (lb.ServerID, error) {
		id, err := hex.DecodeString(v.text)
		if err != nil || len(id) != length {
			return "", fmt.Errorf("is no server ID: write it in hexadecimal, %d digits for a quic.server_id_length of %d", 2*length, length)
		}
		return lb.ServerID(id), nil
	}
}

func parseCommunity(v value) (lb.Community, error) {
	community, err := lb.ParseCommunity(v.text)
	if err != nil {
		return lb.Community{}, errors.New("is no community: write 64512:100, 64512:1:2 or a well-known name such as no-export")
	}
	if community.Large && community.A == math.MaxUint32 { // bgp marks routes by it
		return lb.Community{}, fmt.Errorf("is of AS %d, which is reserved (RFC 7300): use another", community.A)
	}
	return community, nil
}

func parseRouterID(v value) (netip.Addr, error) {
	addr, err := netip.ParseAddr(v.text)
	if err != nil || !addr.Is4() || addr.IsUnspecified() {
		return netip.Addr{}, errors.New("is no router ID: write an IPv4 address other than 0.0.0.0, unique among the routers")
	}
	return addr, nil
}

// parseListen takes an address and a port to listen at.
func parseListen(v value) (netip.AddrPort, error) {
	listen, err := netip.ParseAddrPort(v.text)
	switch {
	case err != nil && strings.HasPrefix(v.text, ":"):
		return netip.AddrPort{}, fmt.Errorf("has no address: write 127.0.0.1%s, or [::]%s for all", v.text, v.text)
	case err != nil:
		return netip.AddrPort{}, errors.New("is no address and port: write 192.0.2.1:1234 or [2001:db8::1]:1234")
	case listen.Port() == 0:
		return netip.AddrPort{}, errors.New("has port 0, which nobody could find: give one from 1 to 65535")
	case listen.Addr().IsUnspecified():
		return listen, nil
	}
	return listen, unicast(listen.Addr())
}

// parseMemberListen takes an address that other members can send to as well.
func parseMemberListen(v value) (netip.AddrPort, error) {
	listen, err := parseListen(v)
	if err == nil && listen.Addr().IsUnspecified() {
		return netip.AddrPort{}, errors.New("does not tell members where to reach this node: name one of its addresses")
	}
	return listen, err
}

// memberPort is memberlist's usual port.
const memberPort = 7946

var hostNames = regexp.MustCompile(`^([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.?$`)

// parseMember takes an address or a DNS name, with or without a port, and
// gives it with one.
func parseMember(v value) (string, error) {
	if addr, err := netip.ParseAddr(v.text); err == nil {
		return netip.AddrPortFrom(addr, memberPort).String(), unicast(addr)
	}
	if member, err := netip.ParseAddrPort(v.text); err == nil && member.Port() != 0 {
		return member.String(), unicast(member.Addr())
	}
	host, port := v.text, strconv.Itoa(memberPort)
	if strings.Contains(host, ":") {
		host, port, _ = net.SplitHostPort(v.text)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || len(host) > 253 || !hostNames.MatchString(host) {
		return "", errors.New("is no member's address: write 192.0.2.1:7946, [2001:db8::1]:7946 or lb2.example.net:7946")
	}
	return net.JoinHostPort(strings.ToLower(host), port), nil
}

func parseSocket(v value) (string, error) {
	switch {
	case !strings.HasPrefix(v.text, "/"), strings.HasSuffix(v.text, "/"), strings.Contains(v.text, "\x00"):
		return "", errors.New("is no absolute path of a socket: write one such as /run/halfproxy/admin.sock")
	case len(v.text) > 107:
		return "", fmt.Errorf("is %d bytes long and a socket's path ends at 107 (unix(7)): shorten it", len(v.text))
	}
	return v.text, nil
}

// parseTarget takes the path of an HTTP request as it goes on the wire.
func parseTarget(v value) (string, error) {
	plain := func(r rune) bool { return r > ' ' && r < 0x7f && r != '#' }
	if !strings.HasPrefix(v.text, "/") || strings.ContainsFunc(v.text, func(r rune) bool { return !plain(r) }) {
		return "", errors.New("is no path of a request: begin it with / and percent-encode what is not plain ASCII")
	}
	return v.text, nil
}
