package service

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"decant/loopdev"
	"decant/thin"
)

// confine keeps all requests to paths below certain directories, or anywhere if there
// are none, and from then on follows symbolic links nowhere but in /dev.
func (s *Service) confine(roots []string) error {
	c := &loopdev.Confine{}
	for _, root := range roots {
		if !filepath.IsAbs(root) || filepath.Clean(root) != root {
			return &Error{Outcome: Usage, Object: root, Problem: "a root has to be an absolute path, in its shortest form"}
		}
		resolved, err := filepath.EvalSymlinks(root)
		if err != nil {
			return refuse(root, "the root cannot be used", "make the directory, or take it out of the configuration", err)
		}
		if err := checkDirectory(root, resolved); err != nil {
			return err
		}
		c.Roots = append(c.Roots, root)
		if resolved != root {
			c.Roots = append(c.Roots, resolved) // journals name ends by their real paths
		}
	}
	s.confined = c
	return nil
}

// mostNameBytes is the longest name that a request may have for an end.
const mostNameBytes = 4095

// checkRequestPaths refuses names that a request may not have, without looking at what
// they lead to.
func (s *Service) checkRequestPaths(r Request) error {
	for _, name := range []string{r.Source, r.Destination} {
		if err := s.checkRequestName(name); err != nil {
			return err
		}
	}
	return s.checkRequestSocket(r.Options.Export)
}

// runtimeDir is where sockets may be made, whatever the roots are.
const runtimeDir = "/run/decant/"

func (s *Service) checkRequestSocket(path string) error {
	switch {
	case path == "":
		return nil
	case !filepath.IsAbs(path) || strings.ContainsFunc(path, unicode.IsControl):
		return &Error{Outcome: Usage, Object: fmt.Sprintf("%.200q", path), Problem: "is not the absolute path of a socket to export on"}
	case strings.HasPrefix(path, runtimeDir) && filepath.Clean(path) == path:
		return nil
	}
	return s.checkRequestName(path)
}

func (s *Service) checkRequestName(name string) error {
	wrong := func(problem, hint string) error {
		return &Error{Outcome: Usage, Object: fmt.Sprintf("%.200q", name), Problem: problem, Hint: hint}
	}
	switch {
	case name == "":
		return &Error{Outcome: Usage, Problem: "source and destination cannot be empty"}
	case len(name) > mostNameBytes:
		return wrong(fmt.Sprintf("is longer than %d bytes", mostNameBytes), "")
	case strings.ContainsFunc(name, unicode.IsControl):
		return wrong("holds control characters", "")
	case strings.Contains(name, "://"):
		return nil // no path; opening it says what is wrong with it
	case !filepath.IsAbs(name):
		if _, _, err := thin.SplitGroupVolume(name); err != nil {
			return wrong("is neither an absolute path nor POOL/VOLUME", "give the path from the root")
		}
		return nil
	case filepath.Clean(name) != name:
		return wrong("is not a path in its shortest form", "write "+filepath.Clean(name))
	case !s.confined.Allows(name):
		return refuse(name, "lies outside of the directories that requests may use: "+strings.Join(s.confined.Roots, ", "),
			"name another, or add its directory to roots in the configuration of the service", ErrOutside)
	}
	return nil
}

// lstat says whether there is something at a path. For a confined service a name that
// is no absolute path leads nowhere.
func (s *Service) lstat(name string) error {
	if s.confined != nil && !filepath.IsAbs(name) {
		return os.ErrNotExist
	}
	_, err := os.Lstat(name)
	return err
}

// stat says whether a path leads to something that this service may use.
func (s *Service) stat(path string) error {
	if s.confined == nil {
		_, err := os.Stat(path)
		return err
	}
	found, err := s.confined.Locate(path)
	if errors.Is(err, os.ErrNotExist) {
		// Nor may it lead through a link to what is not there yet.
		dir, err := s.confined.Locate(filepath.Dir(path))
		if err != nil {
			return err
		}
		if err := dir.Close(); err != nil {
			return err
		}
		return os.ErrNotExist
	}
	if err != nil {
		return err
	}
	return found.Close()
}
