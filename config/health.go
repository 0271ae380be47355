package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/halfproxy/halfproxy/internal/words"
	"github.com/halfproxy/halfproxy/lb"
)

var checkTypes = []lb.CheckType{lb.CheckTCP, lb.CheckHTTP, lb.CheckHTTPS, lb.CheckGRPC, lb.CheckDNS, lb.CheckUDP, lb.CheckExec}

func (c *checker) check(s serviceEntry, ports []lb.Port) lb.Check {
	var check lb.Check
	kind, typed := want(c.report, s.Check.Type, lb.CheckTCP, named(checkTypes...))
	if typed {
		check.Type = kind
		c.useless(s.Check, kind.String())
	}
	check.Via = c.checkVia(s.Check, kind)
	c.timing(s.Check, &check)
	check.Port = c.checkPort(s, check.Type, typed, ports)
	if s.Check.Port.state == absent && check.Port != 0 {
		c.note(s.Check.Port.place, note{value: check.Port, silent: true})
	}

	switch check.Type {
	case lb.CheckHTTP, lb.CheckHTTPS:
		check.TLS = check.Type == lb.CheckHTTPS
		c.httpCheck(s.Check, &check)
	case lb.CheckGRPC:
		check.TLS, _ = want(c.report, s.Check.TLS, false, parseBool)
		check.GRPCService, _ = want(c.report, s.Check.Service, "", parseText)
	case lb.CheckDNS:
		c.dnsCheck(s.Check, &check, ports)
	case lb.CheckUDP:
		c.udpCheck(s.Check, &check)
	case lb.CheckExec:
		c.execCheck(s.Check, &check)
	}
	if typed {
		check.Host, _ = want(c.report, s.Check.Host, "", parseHost)
		c.tlsCheck(s.Check, &check)
	}
	return check
}

// useless reports options that the check's type has no use for, by their tags.
func (c *checker) useless(s checkSection, kind string) {
	section := reflect.ValueOf(&s).Elem()
	for i := range section.NumField() {
		tag := section.Type().Field(i).Tag
		if tag.Get("types") == "" || tag.Get("yaml") == "via" { // of which checkVia says more
			continue
		}
		types := strings.Split(tag.Get("types"), ",")
		option := section.Field(i).Addr().Interface().(part)
		if option.here().state != given || slices.Contains(types, kind) {
			continue
		}
		shown := ""
		if v, single := option.(*value); single { // not headers, whose values may be secrets
			shown = v.String() + " "
		}
		c.at(option.here(), "%sis of no use to type %s: remove it, or set type: %s", shown, kind, words.Or(types))
	}
}

// checkVia is the way that the probes go. A program goes its own.
func (c *checker) checkVia(s checkSection, kind lb.CheckType) lb.Via {
	if kind == lb.CheckExec {
		if s.Via.state == given {
			c.at(s.Via.place, "%s is of no use to type exec, whose program chooses its own way: remove it", s.Via)
		}
		return lb.ViaDirect
	}
	via, _ := want(c.report, s.Via, lb.ViaVIP, named(lb.ViaVIP, lb.ViaDirect))
	return via
}

func (c *checker) timing(s checkSection, check *lb.Check) {
	var known, timed bool
	check.Interval, known = want(c.report, s.Interval, time.Second, lasting(10*time.Millisecond, time.Hour))
	check.Timeout, timed = want(c.report, s.Timeout, min(500*time.Millisecond, check.Interval/2), lasting(time.Millisecond, time.Hour))
	if known && timed && check.Timeout >= check.Interval {
		c.at(s.Timeout.place, "%s is not shorter than interval %v: a probe must be over before the next begins", s.Timeout, check.Interval)
	}
	check.Rise, _ = want(c.report, s.Rise, 2, between(1, 1000))
	check.Fall, _ = want(c.report, s.Fall, 3, between(1, 1000))
	check.FlapHold, _ = want(c.report, s.FlapHold, 0, lasting(0, 24*time.Hour))
	check.SlowStart, _ = want(c.report, s.SlowStart, 0, lasting(0, time.Hour))
}

// checkPort is the port that the check names, else the one that its type usually
// has, if the service has that, else the service's first of the protocol.
func (c *checker) checkPort(s serviceEntry, kind lb.CheckType, typed bool, ports []lb.Port) uint16 {
	port, ok := want(c.report, s.Check.Port, 0, between(1, 65535))
	if port != 0 || !ok || !typed {
		return uint16(port)
	}
	protocols, usual := []lb.Protocol{lb.TCP}, uint16(0)
	switch kind {
	case lb.CheckHTTP:
		usual = 80
	case lb.CheckHTTPS:
		usual = 443
	case lb.CheckDNS:
		protocols, usual = []lb.Protocol{lb.UDP, lb.TCP}, 53
	case lb.CheckUDP:
		protocols = []lb.Protocol{lb.UDP}
	case lb.CheckExec:
		protocols = []lb.Protocol{lb.TCP, lb.UDP}
	}
	for _, protocol := range protocols {
		if usual != 0 && serves(ports, protocol, usual) {
			return usual
		}
	}
	for _, protocol := range protocols {
		if i := slices.IndexFunc(ports, func(p lb.Port) bool { return p.Protocol == protocol && p.Last == 0 }); i >= 0 {
			return ports[i].Number
		}
	}
	complete := len(ports) > 0 && len(ports) == len(s.Ports.items)
	if complete && kind != lb.CheckExec {
		var names []string
		for _, protocol := range protocols {
			names = append(names, strings.ToUpper(protocol.String()))
		}
		c.at(s.Check.Port.place, "is missing and the service has no %s port to try: name one that tells whether a backend is well", words.Or(names))
	}
	return 0
}

// serves tells whether ports have a port of a protocol, alone or in a range.
func serves(ports []lb.Port, protocol lb.Protocol, number uint16) bool {
	return slices.ContainsFunc(ports, func(p lb.Port) bool {
		return p.Protocol == protocol && p.Number <= number && number <= max(p.Number, p.Last)
	})
}

func (c *checker) httpCheck(s checkSection, check *lb.Check) {
	check.Path, _ = want(c.report, s.Path, "/", parseTarget)
	check.Method, _ = want(c.report, s.Method, "GET", oneOf("GET", "HEAD", "OPTIONS", "POST"))
	check.Headers = c.headers(s.Headers)
	check.Status, _ = want(c.report, s.Status, []lb.StatusRange{{First: 200, Last: 299}}, parseStatus)
	check.Body, _ = want(c.report, s.Body, "", parseText)
	check.BodyPattern, _ = want(c.report, s.BodyRegexp, "", parsePattern)
	check.HTTP2, _ = want(c.report, s.HTTP2, false, parseBool)
	if check.Method == "HEAD" {
		for _, v := range []value{s.Body, s.BodyRegexp} {
			if v.state == given {
				c.at(v.place, "%s is of no use to method HEAD, whose answer has no body: remove it, or set method: GET", v)
			}
		}
	}
}

// ownHeaders are those that a probe's request needs as they are.
var ownHeaders = []string{"connection", "content-length", "host", "transfer-encoding", "upgrade"}

// headers reads the request's headers. No error repeats a value: it may be a secret.
func (c *checker) headers(s pairs) []lb.Header {
	var headers []lb.Header
	for i, name := range s.names {
		v := s.values[i]
		if v.state != given {
			continue
		}
		switch lower := strings.ToLower(name); {
		case !token.MatchString(name):
			c.at(s.place, "has %q, which is no name of a header: use letters, digits and dashes", clip(name))
		case lower == "host":
			c.at(v.place, "is set by the probe: give the name as the check's host")
		case slices.Contains(ownHeaders, lower):
			c.at(v.place, "is set by the probe: remove it")
		case v.text == "" || strings.ContainsFunc(v.text, func(r rune) bool { return r < ' ' || r > '~' }):
			c.at(v.place, "has a value that is no header's: use plain ASCII, in one line")
		default:
			headers = append(headers, lb.Header{Name: name, Value: lb.Secret(v.text)})
		}
	}
	// Sorted, so that the order of the file does not make it another check.
	slices.SortStableFunc(headers, func(a, b lb.Header) int { return strings.Compare(a.Name, b.Name) })
	return headers
}

// token is a header's name (RFC 9110, 5.6.2).
var token = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}$")

func (c *checker) tlsCheck(s checkSection, check *lb.Check) {
	if check.Type != lb.CheckHTTPS && check.Type != lb.CheckGRPC {
		return
	}
	if !check.TLS {
		for _, v := range []value{s.Verify, s.CAFile, s.CertFile, s.KeyFile} {
			if v.state == given {
				c.at(v.place, "%s is of no use without tls: remove it, or set tls: true", v)
			}
		}
		return
	}
	check.Verify, _ = want(c.report, s.Verify, true, parseBool)
	check.CA = c.pem(s.CAFile, false)
	if !check.Verify && s.CAFile.state == given {
		c.at(s.CAFile.place, "%s is of no use with verify: false: remove one of them", s.CAFile)
	}
	if data := []byte(check.CA.Data); len(data) > 0 && !x509.NewCertPool().AppendCertsFromPEM(data) {
		c.at(s.CAFile.place, "%s holds no certificate: give it those of the authorities, in PEM", s.CAFile)
	}

	check.Certificate, check.Key = c.pem(s.CertFile, false), c.pem(s.KeyFile, true)
	switch {
	case s.CertFile.state == given && s.KeyFile.state == absent:
		c.at(s.CertFile.place, "%s has no key_file: name the file with its key", s.CertFile)
	case s.KeyFile.state == given && s.CertFile.state == absent:
		c.at(s.KeyFile.place, "%s has no cert_file: name the file with its certificate", s.KeyFile)
	case check.Certificate.Data != "" && check.Key.Data != "":
		if _, err := tls.X509KeyPair([]byte(check.Certificate.Data), []byte(check.Key.Data)); err != nil {
			c.at(s.CertFile.place, "%s and key_file %s are no pair (%w): give a certificate in PEM, with those of its authorities behind it, and its key", s.CertFile, s.KeyFile, err)
		}
	}
}

// pem reads a file with certificates, or a secret one with a key.
func (c *checker) pem(v value, secret bool) lb.File {
	path, ok := want(c.report, v, "", parseText)
	if !ok || path == "" {
		return lb.File{}
	}
	data, _ := c.read(v, path, secret)
	return lb.File{Path: path, Data: lb.Secret(data)}
}

func (c *checker) dnsCheck(s checkSection, check *lb.Check, ports []lb.Port) {
	check.Query, _ = need(c.report, s.Query, "name something that the servers know, such as example.org", parseQuery)
	check.RecordType, _ = want(c.report, s.QueryType, "A", oneOf(lb.RecordTypes...))
	check.Rcode, _ = want(c.report, s.Rcode, "NOERROR", oneOf(lb.Rcodes...))
	check.Answer = c.bytes(s.Answer, value{})

	over, _ := entries(c.report, s.Over.list, named(lb.UDP, lb.TCP))
	for _, protocol := range []lb.Protocol{lb.UDP, lb.TCP} {
		chosen := slices.Contains(over, protocol)
		if chosen || s.Over.state == absent && serves(ports, protocol, check.Port) {
			check.Over = append(check.Over, protocol)
		}
	}
	if s.Over.state == given {
		some(c.report, s.Over.list, "choose udp, tcp or both")
	}
	if len(check.Over) == 0 {
		check.Over = []lb.Protocol{lb.UDP}
	}
	if s.Over.state == absent {
		c.note(s.Over.place, note{value: check.Over, silent: true})
	}
}

func (c *checker) udpCheck(s checkSection, check *lb.Check) {
	check.Payload = c.bytes(s.Payload, s.PayloadHex)
	check.Answer = c.bytes(s.Answer, s.AnswerHex)
	check.Silent, _ = want(c.report, s.Silent, false, parseBool)
	if check.Silent && check.Via == lb.ViaVIP {
		c.at(s.Silent.place, "%s would take a backend without the vip for well: set via: direct as well, or have the backends answer", s.Silent)
	}
	for _, v := range []value{s.Answer, s.AnswerHex} {
		if check.Silent && v.state == given {
			c.at(v.place, "%s is an answer, and silent: true wants none: remove one of them", v)
		}
	}
}

// bytes reads what may be given as text or in hexadecimal digits.
func (c *checker) bytes(text, digits value) []byte {
	if text.state == given && digits.state == given {
		c.at(digits.place, "%s says the same as the text in line %d: remove one of them", digits, text.line)
	}
	if digits.state == given {
		data, _ := want(c.report, digits, nil, parseHex)
		return data
	}
	data, _ := want(c.report, text, nil, func(v value) ([]byte, error) {
		plain, err := parseAnyText(v)
		if err == nil && len(plain) > maxPayload {
			err = tooLong(len(plain))
		}
		return []byte(plain), err
	})
	return data
}

// maxPayload is what fits a packet on any path, encapsulated even.
const maxPayload = 1200

func tooLong(length int) error {
	return fmt.Errorf("has %d bytes, more than fit every packet: give at most %d", length, maxPayload)
}

func (c *checker) execCheck(s checkSection, check *lb.Check) {
	some(c.report, s.Command, "give a program's path and its arguments")
	for i, v := range s.Command.items {
		parse := parseArgument
		if i == 0 {
			parse = parseProgram
		}
		argument, _ := want(c.report, v, "", parse)
		check.Command = append(check.Command, argument)
	}
}

// parseHost takes a name that a server may go by, or an address.
func parseHost(v value) (string, error) {
	if addr, err := netip.ParseAddr(v.text); err == nil && addr.Zone() == "" {
		return addr.String(), nil
	}
	if len(v.text) > 253 || !hostNames.MatchString(v.text) {
		return "", errors.New("is no host name: write one such as www.example.org, without a port")
	}
	return v.text, nil
}

// parseStatus takes HTTP statuses and ranges of them, in any order.
func parseStatus(v value) ([]lb.StatusRange, error) {
	var ranges []lb.StatusRange
	for _, word := range strings.Split(v.text, ",") {
		first, last, ranged := strings.Cut(strings.TrimSpace(word), "-")
		if !ranged {
			last = first
		}
		from, err1 := strconv.Atoi(first)
		to, err2 := strconv.Atoi(last)
		if err1 != nil || err2 != nil || from < 200 || to > 599 || from > to {
			return nil, errors.New(`is no set of statuses: write 200, or "200-299,301", with statuses from 200 to 599`)
		}
		ranges = append(ranges, lb.StatusRange{First: from, Last: to})
	}
	slices.SortFunc(ranges, func(a, b lb.StatusRange) int { return a.First - b.First })
	joined := ranges[:1]
	for _, r := range ranges[1:] {
		if last := &joined[len(joined)-1]; r.First <= last.Last+1 {
			last.Last = max(last.Last, r.Last)
		} else {
			joined = append(joined, r)
		}
	}
	return joined, nil
}

func parsePattern(v value) (string, error) {
	if _, err := parseText(v); err != nil {
		return "", err
	}
	if _, err := regexp.Compile(v.text); err != nil {
		if wrong, ok := errors.AsType[*syntax.Error](err); ok {
			return "", fmt.Errorf("is no regular expression (%s): see the syntax of RE2", wrong.Code)
		}
		return "", fmt.Errorf("is no regular expression: %w", err)
	}
	return v.text, nil
}

// labels are those of a name in DNS, where more is allowed than in a host's name.
var labels = regexp.MustCompile(`^([A-Za-z0-9_*-]{1,63}\.)*[A-Za-z0-9_*-]{1,63}\.?$|^\.$`)

func parseQuery(v value) (string, error) {
	if _, err := parseText(v); err != nil {
		return "", err
	}
	if len(v.text) > 253 || !labels.MatchString(v.text) {
		return "", errors.New("is no name in DNS: write one such as example.org, in ASCII")
	}
	return strings.ToLower(strings.TrimSuffix(v.text, ".")) + ".", nil
}

// parseHex takes bytes as pairs of digits, with blanks between them or not.
func parseHex(v value) ([]byte, error) {
	data, err := hex.DecodeString(strings.ReplaceAll(v.text, " ", ""))
	switch {
	case err != nil || len(data) == 0:
		return nil, errors.New(`is no text of hexadecimal digits: write two a byte, such as "00 ff 1a"`)
	case len(data) > maxPayload:
		return nil, tooLong(len(data))
	}
	return data, nil
}

// parseAnyText takes what YAML would take for a number as the text it is.
func parseAnyText(v value) (string, error) {
	v.kind = text
	return parseText(v)
}

func parseArgument(v value) (string, error) {
	if strings.Contains(v.text, "\x00") {
		return "", errors.New("has a NUL byte, which no argument can have: remove it")
	}
	return v.text, nil
}

func parseProgram(v value) (string, error) {
	if !strings.HasPrefix(v.text, "/") {
		return "", errors.New("is no absolute path of a program: there is no shell and no search, begin it with /")
	}
	return parseArgument(v)
}
