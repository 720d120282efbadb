package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
)

// image is an original that is copied for every run.
type image struct {
	name      string
	about     string
	path      string
	bytes     int64
	dataBytes int64 // space that it takes
}

// imageNames are the images that makeImage makes.
var imageNames = []string{"random", "sparse", "ext4"}

const (
	randomBytes      = 1 << 30
	sparseSlots      = 1024
	sparseSlotBytes  = 8 << 20
	sparseDataBytes  = 1 << 20 // in each slot
	sparseAlignBytes = 64 << 10
	ext4MiB          = 900
	largestDataBytes = int64(randomBytes)
)

// makeImage makes an original, scale times smaller than usual, in place of the one
// that was at path.
func makeImage(ctx context.Context, name, path string, scale int64) (image, error) {
	if err := os.RemoveAll(path); err != nil {
		return image{}, err
	}
	img := image{name: name, path: path}
	var err error
	switch name {
	case "random":
		img.about = "random bytes, no holes"
		err = writeImage(path, randomBytes/scale, []extent{{0, randomBytes / scale}})
	case "sparse":
		slots := sparseSlots / scale
		img.about = fmt.Sprintf("%d scattered extents of random bytes, 1 MiB each", slots)
		err = writeImage(path, slots*sparseSlotBytes, scattered(slots))
	case "ext4":
		img.about = "ext4 file system full of files of this system"
		err = makeExt4(ctx, path, ext4MiB/scale)
	default:
		err = errors.New("there is no image of that name")
	}
	if err != nil {
		return image{}, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return image{}, err
	}
	img.bytes = info.Size()
	img.dataBytes, err = allocatedBytes(path)
	return img, err
}

// extent is a range of bytes.
type extent struct{ off, bytes int64 }

// scattered puts one extent into each slot, at a place that is random but the same
// in every run of the program.
func scattered(slots int64) []extent {
	random := rand.New(rand.NewPCG(1, 2))
	places := int64((sparseSlotBytes - sparseDataBytes) / sparseAlignBytes)
	extents := make([]extent, 0, slots)
	for slot := range slots {
		extents = append(extents, extent{off: slot*sparseSlotBytes + random.Int64N(places+1)*sparseAlignBytes, bytes: sparseDataBytes})
	}
	return extents
}

// writeImage makes a file with random bytes in the extents and holes elsewhere.
func writeImage(path string, bytes int64, extents []extent) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(bytes); err != nil {
		return err
	}
	random := rand.NewChaCha8([32]byte{})
	for _, e := range extents {
		if _, err := io.Copy(io.NewOffsetWriter(f, e.off), io.LimitReader(random, e.bytes)); err != nil {
			return err
		}
	}
	return f.Sync()
}

func makeExt4(ctx context.Context, path string, mib int64) error {
	full, sums := path+".full", path+".sums"
	cmd := exec.CommandContext(ctx, filepath.Join("demo", "make-image.sh"), full, strconv.FormatInt(mib, 10), sums)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return err
	}
	// The original takes the space that its copies will take.
	if err := copySparse(ctx, full, path); err != nil {
		return err
	}
	return errors.Join(os.Remove(full), os.Remove(sums))
}

// copySparse copies a file so that what is zero in it takes no space.
func copySparse(ctx context.Context, from, to string) error {
	if out, err := exec.CommandContext(ctx, "cp", "--sparse=always", "--reflink=never", "--", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w: %s", from, err, out)
	}
	return nil
}

// allocatedBytes is the space that a file takes.
func allocatedBytes(path string) (int64, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	return st.Blocks * 512, nil
}
