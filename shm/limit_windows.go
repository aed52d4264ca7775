package shm

// usualLimit is small here: mapping a range makes the file as long as the range.
const usualLimit = 256 << 20
