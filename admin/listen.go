package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// listenSocket binds the admin socket, in place of one left over by a process
// that has died. Its owner and group may connect, nobody else.
func listenSocket(path string) (net.Listener, error) {
	const mode = 0o660
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("admin socket: make its directory: %w: change admin.socket or make it by hand", err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// A socket's file takes its mode from the socket, less the umask: set
	// before bind, there is no moment at which others could connect.
	early := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
		var failed error
		err := conn.Control(func(fd uintptr) { failed = syscall.Fchmod(int(fd), mode) })
		return errors.Join(err, failed)
	}}
	l, err := early.Listen(context.Background(), "unix", path)
	if err != nil {
		const longest = len(syscall.RawSockaddrUnix{}.Path) - 1
		if len(path) > longest {
			return nil, fmt.Errorf("admin socket: %w: a path has at most %d bytes, this one has %d", err, longest, len(path))
		}
		return nil, fmt.Errorf("admin socket: %w: change admin.socket", err)
	}
	if err := os.Chmod(path, mode); err != nil { // what the umask took
		l.Close()
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	return l, nil
}

// removeStale makes way at path if what is there is a socket that nobody
// listens on.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("admin socket: %s is there and is not a socket: change admin.socket or move it away", path)
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
		return fmt.Errorf("another halfproxy runs: it listens on %s: stop it or give this one another admin.socket", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("admin socket: is another halfproxy behind it? %w", err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("admin socket: remove what a dead process left: %w", err)
	}
	return nil
}
