package thin

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// metadataImage is a metadata device as thin-provisioning-tools write it.
func metadataImage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	image, xml := filepath.Join(dir, "metadata"), filepath.Join(dir, "xml")
	const dump = `<superblock uuid="" time="1" transaction="7" version="2" data_block_size="256" nr_data_blocks="1000">
  <device dev_id="0" mapped_blocks="3" transaction="0" creation_time="0" snap_time="1">
    <range_mapping origin_begin="0" data_begin="5" length="3" time="0"/>
  </device>
</superblock>`
	if err := os.WriteFile(xml, []byte(dump), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(image, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("thin_restore", "-i", xml, "-o", image).CombinedOutput(); err != nil {
		t.Fatalf("thin_restore: %v\n%s", err, out)
	}
	return image
}

func TestReadSuperblock(t *testing.T) {
	text, err := os.ReadFile(metadataImage(t))
	if err != nil {
		t.Fatal(err)
	}
	want := superblock{transactionID: 7, dataBlocks: 1000, dataUsedBlocks: 3, blockBytes: 128 << 10}
	if got, err := readSuperblock(bytes.NewReader(text)); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	text[100] ^= 1
	if _, err := readSuperblock(bytes.NewReader(text)); !errors.Is(err, errSuperblock) {
		t.Errorf("damaged: %v", err)
	}
	if _, err := readSuperblock(bytes.NewReader(make([]byte, 4096))); !errors.Is(err, errNoSuperblock) {
		t.Errorf("zeros: %v", err)
	}
	if _, err := readSuperblock(bytes.NewReader(nil)); err == nil {
		t.Error("nothing was read, and nothing said")
	}
}

func FuzzDecodeSuperblock(f *testing.F) {
	f.Add(make([]byte, metadataBlockBytes))
	f.Fuzz(func(t *testing.T, b []byte) {
		block := make([]byte, metadataBlockBytes)
		copy(block, b)
		if s, err := decodeSuperblock(block); err == nil && s.dataBlocks*s.blockBytes > maxDataBytes {
			t.Errorf("%+v is too large", s)
		}
	})
}
