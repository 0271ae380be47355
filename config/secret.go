package config

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

// readFile reads a file that the configuration names. A secret one must be nobody's
// business. Its group may read it: root:halfproxy with mode 0640 is how a daemon
// that is not root gets at a secret it cannot change, and a POSIX ACL shows in the
// group's bits.
func readFile(path string, secret bool) ([]byte, error) {
	// O_NONBLOCK: opening a FIFO must not wait for someone to write.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("cannot be read: %w: let the user that halfproxy runs as read it, as by chgrp and chmod 640", err)
	case err != nil:
		return nil, fmt.Errorf("cannot be read: %w: give the path of the file that holds it", err)
	}
	defer f.Close()

	most, kind := int64(1<<20), "certificates"
	if secret {
		most, kind = 64<<10, "a secret"
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot be read: %w", err)
	case !info.Mode().IsRegular():
		return nil, errors.New("is no regular file: give the path of one")
	case secret && info.Mode()&0o007 != 0:
		return nil, fmt.Errorf("can be read or changed by every user (mode %04o): chmod 600 %s", info.Mode().Perm(), path)
	case info.Size() > most:
		return nil, fmt.Errorf("has %d bytes, far more than %s: give the path of the right file", info.Size(), kind)
	}
	data, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	return data, nil
}

// secret is read for what must be nobody's business.
func (c *checker) secret(v value, path string) ([]byte, bool) { return c.read(v, path, true) }

// read reads the file that v names. False is one that was not read, be it on
// purpose.
func (c *checker) read(v value, path string, secret bool) ([]byte, bool) {
	if c.host.file == nil {
		return nil, false
	}
	data, err := c.host.file(c.host.beside(v.file, path), secret)
	if err != nil {
		c.at(v.place, "%s %w", v, err)
		return nil, false
	}
	c.keepSecret(v.place, data)
	return data, true
}

const makeKey = "make one by `head -c 32 /dev/urandom | base64` and give it to every node"

// keys reads the cluster's keys: base64, one a line. Lines that are blank or
// begin with # are passed over. No error repeats what the file holds.
func (c *checker) keys(v value, path string) [][]byte {
	data, ok := c.secret(v, path)
	if !ok {
		return nil
	}
	var keys [][]byte
	lines := map[string]int{}
	number, tried := 0, 0
	for line := range strings.Lines(string(data)) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		tried++
		key, err := base64.StdEncoding.Strict().DecodeString(line)
		first, twice := lines[string(key)]
		switch {
		case err != nil:
			c.at(v.place, "%s holds no key in base64 in its line %d: %s", v, number, makeKey)
		case len(key) != 16 && len(key) != 24 && len(key) != 32:
			c.at(v.place, "%s has a key of %d bytes in its line %d and AES takes 16, 24 or 32: %s", v, len(key), number, makeKey)
		case twice:
			c.at(v.place, "%s has the same key in its lines %d and %d: remove one of them", v, first, number)
		default:
			lines[string(key)] = number
			keys = append(keys, key)
		}
	}
	if tried == 0 {
		c.at(v.place, "%s holds no key: %s", v, makeKey)
	}
	return keys
}

// password reads one that a router has, too: one line, of so many bytes at most for the
// method that it is for.
func (c *checker) password(v value, path string, most int, method string) string {
	data, ok := c.secret(v, path)
	if !ok {
		return ""
	}
	password := bytes.TrimSuffix(bytes.TrimSuffix(data, []byte("\n")), []byte("\r"))
	switch {
	case len(password) == 0:
		c.at(v.place, "%s is an empty file: write the password that the router has into it", v)
	case bytes.ContainsAny(password, "\r\n\x00"):
		c.at(v.place, "%s has more than one line: a password is one line of text", v)
	case len(password) > most:
		c.at(v.place, "%s has a password of %d bytes and %s ends at %d: shorten it at both ends", v, len(password), method, most)
	}
	return string(password)
}
