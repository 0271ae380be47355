package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/google/renameio/v2"
)

// keptFile keeps something over a restart of all members at once.
type keptFile[T any] struct {
	path string
	what string // in words
}

// read gives nothing where nothing was kept.
func (f keptFile[T]) read() (kept T, err error) {
	data, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return kept, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &kept)
	}
	if err != nil {
		return kept, fmt.Errorf("read the %s of before from %s: %w: remove the file to forget them", f.what, f.path, err)
	}
	return kept, nil
}

func (f keptFile[T]) write(kept T) error {
	data, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	return renameio.WriteFile(f.path, data, 0o600)
}
