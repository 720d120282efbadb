package loopdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrOutside: the path, or what it leads to, lies outside of what is allowed.
var ErrOutside = errors.New("outside of what may be used")

// Confine is for paths that come from somebody who must not be able to lead this
// process astray. Symbolic links are not followed, at any place of the path, so that
// nobody can exchange what it leads to; only those in /dev are, which are root's, and
// only to block devices. A nil Confine allows everything.
type Confine struct {
	// Roots are directories, absolute and in their shortest form, below which all paths
	// have to lie; none: anywhere. They are followed like any path of an administrator.
	Roots []string
}

const devDir = "/dev/"

// Allows says whether a path lies below one of the roots, by its name alone.
func (c *Confine) Allows(path string) bool {
	if c == nil {
		return true
	}
	_, ok := c.root(path)
	return ok
}

// root is the root that a path lies below.
func (c *Confine) root(path string) (string, bool) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return "", false
	}
	if len(c.Roots) == 0 {
		return "/", true
	}
	i := slices.IndexFunc(c.Roots, func(root string) bool {
		return path == root || strings.HasPrefix(path, strings.TrimSuffix(root, "/")+"/")
	})
	if i < 0 {
		return "", false
	}
	return c.Roots[i], true
}

// Locate opens what a path leads to as a place only (O_PATH): nothing can be read or
// written through it. An error is ErrOutside, or why there is no way to it.
func (c *Confine) Locate(path string) (*os.File, error) {
	h, err := c.resolve(path)
	if err != nil {
		return nil, failure("look at", path, 0, 0, err)
	}
	return h.file, nil
}

// resolve is resolve within the limits.
func (c *Confine) resolve(path string) (*handle, error) {
	if c == nil {
		return resolve(path)
	}
	root, ok := c.root(path)
	if !ok {
		return nil, ErrOutside
	}
	if strings.HasPrefix(path, devDir) {
		return resolveNode(path)
	}
	top, err := resolve(root)
	if err != nil {
		return nil, err
	}
	defer top.close()
	rest, err := filepath.Rel(root, path)
	if err != nil {
		return nil, err
	}
	how := &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	var fd int
	err = onFD(top.file, func(at int) error {
		return retry(func() (err error) {
			fd, err = unix.Openat2(at, rest, how)
			return err
		})
	})
	switch {
	case errors.Is(err, unix.ELOOP):
		return nil, fmt.Errorf("%w: symbolic links are not followed here, give the path without them", err)
	case errors.Is(err, unix.EXDEV):
		return nil, fmt.Errorf("%w: %w", ErrOutside, err)
	case err != nil:
		return nil, err
	}
	return newHandle(fd, path)
}

// resolveNode resolves a path in /dev, whose links lead from names to devices.
func resolveNode(path string) (*handle, error) {
	h, err := resolve(path)
	if err != nil {
		return nil, err
	}
	if h.stat.Mode&unix.S_IFMT != unix.S_IFDIR && (h.stat.Mode&unix.S_IFMT != unix.S_IFBLK || !strings.HasPrefix(h.path, devDir)) {
		h.close()
		return nil, fmt.Errorf("%w: not a block device", ErrOutside)
	}
	return h, nil
}
