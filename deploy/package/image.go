package main

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// image makes an OCI archive of one image for all architectures, without a daemon. An
// image has one layer with one file.
func (r release) image(archs []string, dir string) error {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range archs {
		img, err := r.imageFor(arch)
		if err != nil {
			return err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	// An index within the index, so that there is one thing in the archive and who
	// reads it takes the part for their machine.
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	version := packageVersion(r.version, r.made)
	// A tag may have neither + nor ~.
	tag := strings.NewReplacer("+", "-", "~", "-").Replace(version)
	if err := path.AppendIndex(index, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag})); err != nil {
		return err
	}
	return create(filepath.Join(r.out, "halfproxy-"+version+".oci.tar"), func(w io.Writer) error { return r.archive(w, dir) })
}

func (r release) imageFor(arch string) (v1.Image, error) {
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		read, write := io.Pipe()
		go func() { write.CloseWithError(r.layer(write, arch)) }()
		return read, nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	created := v1.Time{Time: r.made}
	img, err := mutate.Append(
		mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON),
		mutate.Addendum{Layer: layer, History: v1.History{Created: created, CreatedBy: "make packages"}})
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", arch, created
	config.Config = v1.Config{
		Entrypoint: []string{"/usr/bin/halfproxy"},
		Cmd:        []string{"run"},
		Labels: map[string]string{
			"org.opencontainers.image.title":       "halfproxy",
			"org.opencontainers.image.description": summary,
			"org.opencontainers.image.url":         homepage,
			"org.opencontainers.image.version":     r.version,
			"org.opencontainers.image.licenses":    license,
		},
	}
	return mutate.ConfigFile(img, config)
}

// layer writes the layer, a tar of the binary and its folders.
func (r release) layer(w io.Writer, arch string) error {
	binary, err := os.Open(r.binary(arch))
	if err != nil {
		return err
	}
	defer binary.Close()
	stat, err := binary.Stat()
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	for _, dir := range []string{"usr/", "usr/bin/"} {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: r.made}); err != nil {
			return err
		}
	}
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "usr/bin/halfproxy", Mode: 0o755, Size: stat.Size(), ModTime: r.made}); err != nil {
		return err
	}
	if _, err := io.Copy(t, binary); err != nil {
		return err
	}
	return t.Close()
}

// archive writes dir as a tar that tells nothing of this machine.
func (r release) archive(w io.Writer, dir string) error {
	t := tar.NewWriter(w)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: r.made}); err != nil {
			return err
		}
		_, err = t.Write(content)
		return err
	})
	return errors.Join(err, t.Close())
}
