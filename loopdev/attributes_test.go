package loopdev

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// encryptedDir is a directory of an ext4 in which files are encrypted, and a
// function that locks it.
func encryptedDir(t *testing.T) (dir string, lock func()) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "encrypted.img")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 64<<20))
	run(t, "mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "encrypt", image)
	point := mountOn(t, image, "-o", "loop")
	root, err := os.Open(point)
	must(t, err)
	t.Cleanup(func() { root.Close() })
	var key struct {
		unix.FscryptAddKeyArg
		raw [64]byte
	}
	copy(key.raw[:], random(len(key.raw), 1))
	key.Key_spec.Type = unix.FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER
	key.Raw_size = uint32(len(key.raw))
	request(t, root, unix.FS_IOC_ADD_ENCRYPTION_KEY, unsafe.Pointer(&key))
	dir = filepath.Join(point, "private")
	must(t, os.Mkdir(dir, 0o700))
	policy := unix.FscryptPolicyV2{
		Version: unix.FSCRYPT_POLICY_V2, Contents_encryption_mode: unix.FSCRYPT_MODE_AES_256_XTS,
		Filenames_encryption_mode: unix.FSCRYPT_MODE_AES_256_CTS, Flags: unix.FSCRYPT_POLICY_FLAGS_PAD_32,
	}
	copy(policy.Master_key_identifier[:], key.Key_spec.U[:])
	d, err := os.Open(dir)
	must(t, err)
	request(t, d, unix.FS_IOC_SET_ENCRYPTION_POLICY, unsafe.Pointer(&policy))
	must(t, d.Close())
	return dir, func() {
		remove := unix.FscryptRemoveKeyArg{Key_spec: key.Key_spec}
		request(t, root, unix.FS_IOC_REMOVE_ENCRYPTION_KEY, unsafe.Pointer(&remove))
	}
}

func request(t *testing.T, f *os.File, number uintptr, arg unsafe.Pointer) {
	t.Helper()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), number, uintptr(arg)); errno != 0 {
		t.Fatalf("ioctl %#x: %v", number, errno)
	}
}

// fault 14
func TestFault14EncryptedFile(t *testing.T) {
	dir, lock := encryptedDir(t)
	path, content := image(t, dir, 1<<20)
	d, err := Open(path, readWrite)
	must(t, err)
	if !d.Info().Encrypted || d.Info().Verity {
		t.Errorf("%+v", d.Info())
	}
	sameBytes(t, "an encrypted file", readAll(t, d), content)
	must(t, d.Discard(0, 1<<20))
	if n, err := d.AllocatedBytes(); n != 0 || err != nil {
		t.Errorf("takes %d bytes: %v", n, err)
	}
	must(t, d.Close())
	lock()
	names, err := os.ReadDir(dir)
	must(t, err)
	if len(names) != 1 {
		t.Fatalf("%v", names)
	}
	_, err = Open(filepath.Join(dir, names[0].Name()), Options{})
	if !errors.Is(err, unix.ENOKEY) || !strings.Contains(err.Error(), "its directory is locked") {
		t.Errorf("locked: %v", err)
	}
}

// fault 14
func TestFault14CompressedFile(t *testing.T) {
	dir := dirOn(t, "btrfs")
	plain, _ := image(t, dir, 1<<20)
	compressed := filepath.Join(dir, "compressed")
	must(t, os.WriteFile(compressed, nil, 0o600))
	run(t, "chattr", "+c", compressed)
	f, err := os.OpenFile(compressed, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.Write(bytes.Repeat([]byte("compressible"), 1<<18))
	must(t, errors.Join(err, f.Sync(), f.Close()))
	for path, want := range map[string]bool{plain: false, compressed: true} {
		d := openDevice(t, path, Options{})
		n, err := d.CompressedBytes()
		if d.Info().Compressed != want || n > 0 != want || err != nil {
			t.Errorf("%s: %v, %d bytes, %v; want %v", path, d.Info().Compressed, n, err, want)
		}
	}
}

func TestWhatHasNoAttributes(t *testing.T) {
	_, block := blockDevice(t, t.TempDir(), 1<<20)
	if _, err := openDevice(t, block, Options{}).CompressedBytes(); !errors.Is(err, ErrNotCountable) {
		t.Errorf("block device: %v", err)
	}
	for _, fsType := range []string{"ext4", "xfs", "tmpfs", "ramfs"} {
		path, _ := image(t, dirOn(t, fsType), 1<<20)
		d := openDevice(t, path, Options{})
		if i := d.Info(); i.Encrypted || i.Verity || i.Compressed {
			t.Errorf("%s: %+v", fsType, i)
		}
	}
}
